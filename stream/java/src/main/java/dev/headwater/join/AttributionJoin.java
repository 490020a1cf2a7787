package dev.headwater.join;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.dataview.MapView;
import org.apache.flink.table.catalog.DataTypeFactory;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.functions.FunctionContext;
import org.apache.flink.table.functions.ProcessTableFunction;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.StateTypeStrategy;
import org.apache.flink.table.types.inference.StaticArgument;
import org.apache.flink.table.types.inference.StaticArgumentTrait;
import org.apache.flink.table.types.inference.TypeInference;
import org.apache.flink.table.types.inference.TypeStrategies;

/**
 * The join as one keyed operator: a thin shell that gives {@link PairJoin} its state, the watermark
 * and a timer, and turns its verdicts into rows (topic, key, value, headers) of one Kafka sink.
 *
 * <p>It takes no {@code on_time}: Flink 2.3 fires timers and gives the watermark without it, and the
 * input's rowtime column is then free to be null for events that must not move the watermark.
 */
public final class AttributionJoin extends ProcessTableFunction<RowData> {
  private static final long serialVersionUID = 1L;
  private static final int STREAM = 0;
  private static final int KEY = 1;
  private static final int ID = 2;
  private static final int USER = 3;
  private static final int ITEM = 4;
  private static final int EVENT_MS = 5;
  private static final int KIND = 6;
  private static final int NAMED = 7;
  private static final int VALUE = 8;
  private static final int PAYLOAD = 9;
  private static final int ERROR = 10;
  private static final int PARTITION = 11;
  private static final int OFFSET = 12;
  private static final int PRODUCED_MS = 13;
  private static final int CLOCK_MS = 14;

  private static final DataType INPUT =
      DataTypes.ROW(
          DataTypes.FIELD("stream", DataTypes.INT()),
          DataTypes.FIELD("k", DataTypes.BYTES()),
          DataTypes.FIELD("id", DataTypes.STRING()),
          DataTypes.FIELD("user_id", DataTypes.STRING()),
          DataTypes.FIELD("item_id", DataTypes.STRING()),
          DataTypes.FIELD("event_ms", DataTypes.BIGINT()),
          DataTypes.FIELD("kind", DataTypes.STRING()),
          DataTypes.FIELD("named", DataTypes.STRING()),
          DataTypes.FIELD("amount", DataTypes.DOUBLE()),
          DataTypes.FIELD("payload", DataTypes.BYTES()),
          DataTypes.FIELD("error", DataTypes.STRING()),
          DataTypes.FIELD("source_partition", DataTypes.INT()),
          DataTypes.FIELD("source_offset", DataTypes.BIGINT()),
          DataTypes.FIELD("produced", DataTypes.TIMESTAMP_LTZ(3)),
          DataTypes.FIELD("clock_ms", DataTypes.BIGINT()));
  private static final DataType OUTPUT =
      DataTypes.ROW(
          DataTypes.FIELD("topic", DataTypes.STRING()),
          DataTypes.FIELD("k", DataTypes.BYTES()),
          DataTypes.FIELD("v", DataTypes.BYTES()),
          DataTypes.FIELD("headers", DataTypes.MAP(DataTypes.STRING(), DataTypes.BYTES())));

  /**
   * No time to live. Said aloud, since Flink 2.3 makes an endless one of a strategy without any: it
   * then stamps every value, looks through others at each access, and filters them in compactions.
   */
  private static final Duration KEPT = Duration.ZERO;

  /** The keyed state of a pair: see {@link PairCodec}. */
  public static final class Memory {
    public byte[] pair;
  }

  private transient JoinMetrics metrics;
  private transient PairJoin join;
  private transient PairStore store;
  private transient RowOutput output;
  private transient List<Kind> kinds;
  private transient long futureBoundMs;
  /** What the watermark had reached in the state that this run restores: it never goes back. */
  private transient long reachedMs;

  /**
   * The signature, said in code because annotations only know {@code Row}: rows stay in Flink's
   * internal form on both sides, which saves a conversion of every field.
   */
  @Override
  public TypeInference getTypeInference(DataTypeFactory types) {
    LinkedHashMap<String, StateTypeStrategy> states = new LinkedHashMap<>();
    states.put(
        "memory",
        StateTypeStrategy.of(
            TypeStrategies.explicit(DataTypes.of(Memory.class).toDataType(types)), KEPT));
    for (String name : new String[] {"payloads", "entries"}) {
      states.put(
          name,
          StateTypeStrategy.of(
              TypeStrategies.explicit(
                  MapView.newMapViewDataType(DataTypes.BIGINT(), DataTypes.BYTES())),
              KEPT));
    }
    return TypeInference.newBuilder()
        .staticArguments(
            StaticArgument.table(
                "in",
                INPUT.bridgedTo(RowData.class),
                false,
                EnumSet.of(StaticArgumentTrait.SET_SEMANTIC_TABLE)))
        .stateTypeStrategies(states)
        .outputTypeStrategy(TypeStrategies.explicit(OUTPUT.bridgedTo(RowData.class)))
        .build();
  }

  @Override
  public void open(FunctionContext context) {
    JoinSettings settings =
        new JoinSettings(
            JoinSettings.kinds(context.getJobParameter("headwater.kinds", "")),
            context.getJobParameter("headwater.policy", "wait").equals("correct"),
            Long.parseLong(context.getJobParameter("headwater.elapsed_ms", "0")),
            Long.parseLong(context.getJobParameter("headwater.lateness_ms", "0")),
            Double.parseDouble(context.getJobParameter("headwater.negatives_kept", "1.0")),
            JoinSettings.rates(
                context.getJobParameter("headwater.negatives_kept_by_domain", "")));
    kinds = settings.kinds();
    futureBoundMs = Long.parseLong(context.getJobParameter("headwater.future_bound_ms", "86400000"));
    long restoredMs = Long.parseLong(context.getJobParameter("headwater.watermark_ms", "-1"));
    restoredMs = Math.max(restoredMs, floorMs(context.getJobParameter("headwater.watermark_file", "")));
    reachedMs = restoredMs < 0 ? Long.MIN_VALUE : restoredMs;
    metrics = new JoinMetrics(context.getMetricGroup());
    output = new RowOutput(context.getJobParameter("headwater.topic_prefix", "headwater"));
    join = new PairJoin(settings, output);
    store = new PairStore(new PairCodec(kinds));
  }

  /** What a completed checkpoint of this process holds at least (stream/floor.py); -1 = nothing. */
  private static long floorMs(String file) {
    try {
      return file.isEmpty() ? -1 : Long.parseLong(Files.readString(Path.of(file)).strip());
    } catch (NoSuchFileException first) {
      return -1; // no restart inside the process: the parameter says all
    } catch (IOException failed) {
      throw new UncheckedIOException("watermark file " + file + " not readable", failed);
    }
  }

  /** One row of either stream, in the column order of the constants above. */
  public void eval(
      Context context,
      Memory memory,
      MapView<Long, byte[]> payloads,
      MapView<Long, byte[]> entries,
      RowData in) {
    TimeContext<Long> time = context.timeContext(Long.class);
    Long watermark = time.currentWatermark();
    long watermarkMs = watermark == null ? reachedMs : Math.max(watermark, reachedMs);
    output.begin(watermarkMs, payloads);
    if (!in.isNullAt(ERROR)) {
      undecodable(in, in.getString(ERROR).toString());
    } else if (in.isNullAt(CLOCK_MS)) {
      undecodable(
          in,
          "event_ms: expected at most " + futureBoundMs + " ms ahead of its partition's running"
              + " event time and of the wall clock, got " + in.getLong(EVENT_MS));
    } else {
      PairState state = store.read(memory.pair, entries);
      join.onEvent(state, event(in), watermarkMs);
      leave(memory, entries, state, time);
    }
  }

  /** The watermark reached a time at which something of this pair is due. */
  public void onTimer(
      OnTimerContext context,
      Memory memory,
      MapView<Long, byte[]> payloads,
      MapView<Long, byte[]> entries) {
    TimeContext<Long> time = context.timeContext(Long.class);
    long watermarkMs = Math.max(time.currentWatermark(), reachedMs);
    output.begin(watermarkMs, payloads);
    PairState state = store.read(memory.pair, entries);
    join.onWatermark(state, watermarkMs);
    leave(memory, entries, state, time);
  }

  private void leave(
      Memory memory, MapView<Long, byte[]> entries, PairState state, TimeContext<Long> time) {
    metrics.watermark(output.watermarkMs);
    if (state.timerMs <= output.watermarkMs) {
      state.timerMs = PairState.NO_TIMER; // it has fired, or is about to and will find nothing due
    }
    long dueMs = join.nextDueMs(state);
    if (dueMs < state.timerMs) {
      time.registerOnTime(dueMs);
      state.timerMs = dueMs;
    }
    memory.pair = store.write(state, entries);
  }

  private Event event(RowData in) {
    long eventMs = in.getLong(EVENT_MS);
    metrics.event(eventMs);
    boolean conversion = in.getInt(STREAM) == 1;
    byte[] kind = bytes(in, KIND); // an impression's domain, where a rate depends on it
    return new Event(
        conversion,
        bytes(in, ID),
        bytes(in, USER),
        bytes(in, ITEM),
        eventMs,
        conversion ? Kind.of(kinds, kind, 0, kind.length) : null,
        bytes(in, NAMED),
        conversion ? null : kind,
        in.isNullAt(VALUE) ? null : in.getDouble(VALUE),
        in.getBinary(PAYLOAD),
        in.getInt(PARTITION),
        in.getLong(OFFSET),
        in.getTimestamp(PRODUCED_MS, 3).getMillisecond());
  }

  private static byte[] bytes(RowData in, int column) {
    return in.isNullAt(column) ? null : in.getString(column).toBytes();
  }

  private void undecodable(RowData in, String reason) {
    output.emit(
        JoinOutput.Topic.UNDECODABLE,
        in.isNullAt(KEY) ? null : in.getBinary(KEY),
        in.isNullAt(PAYLOAD) ? null : in.getBinary(PAYLOAD),
        in.getInt(STREAM) == 1,
        in.getInt(PARTITION),
        in.getLong(OFFSET),
        in.isNullAt(EVENT_MS) ? -1 : in.getLong(EVENT_MS),
        in.getTimestamp(PRODUCED_MS, 3).getMillisecond(),
        reason);
  }

  /** Verdicts to rows; alive as long as the operator, pointed at one pair at a time. */
  private final class RowOutput implements JoinOutput {
    private static final byte[] IMPRESSIONS = "impressions".getBytes(StandardCharsets.US_ASCII);
    private static final byte[] CONVERSIONS = "conversions".getBytes(StandardCharsets.US_ASCII);

    private final StringData[] topics = new StringData[Topic.values().length];
    private final ByteWriter digits = new ByteWriter();
    private MapView<Long, byte[]> payloads;
    private long watermarkMs;
    private byte[] watermark;

    RowOutput(String prefix) {
      for (Topic topic : Topic.values()) {
        topics[topic.ordinal()] =
            StringData.fromString(prefix + "." + topic.name().toLowerCase(Locale.ROOT));
      }
    }

    void begin(long operatorWatermarkMs, MapView<Long, byte[]> pairPayloads) {
      if (watermark == null || watermarkMs != operatorWatermarkMs) {
        watermarkMs = operatorWatermarkMs;
        watermark = ascii(watermarkMs == Long.MIN_VALUE ? -1 : watermarkMs);
      }
      payloads = pairPayloads;
    }

    @Override
    public void emit(
        Topic topic,
        byte[] key,
        byte[] value,
        boolean conversion,
        int partition,
        long offset,
        long eventMs,
        long producedMs,
        String reason) {
      long joinedMs = System.currentTimeMillis();
      Object[] headers = new Object[reason == null ? 7 : 8];
      headers[0] = conversion ? CONVERSIONS : IMPRESSIONS;
      headers[1] = ascii(partition);
      headers[2] = ascii(offset);
      headers[3] = watermark;
      headers[4] = ascii(eventMs);
      headers[5] = ascii(producedMs);
      headers[6] = ascii(joinedMs);
      if (reason != null) {
        headers[7] = ascii(reason);
      }
      metrics.emitted(topic, conversion, producedMs, joinedMs);
      collect(GenericRowData.of(topics[topic.ordinal()], key, value, new HeaderRow(headers)));
    }

    @Override
    public void countClosed(boolean sampled) {
      metrics.closed(sampled);
    }

    @Override
    public byte[] load(long number) {
      try {
        return payloads.get(number);
      } catch (Exception failed) {
        throw new IllegalStateException("join state: payload " + number + " not readable", failed);
      }
    }

    @Override
    public void keep(long number, byte[] payload) {
      try {
        payloads.put(number, payload);
      } catch (Exception failed) {
        throw new IllegalStateException("join state: payload " + number + " not kept", failed);
      }
    }

    @Override
    public void drop(long number) {
      try {
        payloads.remove(number);
      } catch (Exception failed) {
        throw new IllegalStateException("join state: payload " + number + " not dropped", failed);
      }
    }

    private byte[] ascii(long number) {
      return digits.reset().decimal(number).toBytes();
    }

    private static byte[] ascii(String text) {
      StringBuilder out = new StringBuilder(text.length());
      for (int i = 0; i < text.length(); i++) {
        char c = text.charAt(i);
        if (c >= 0x20 && c < 0x7f) {
          out.append(c);
        } else {
          out.append(String.format("\\u%04x", (int) c));
        }
      }
      return out.toString().getBytes(StandardCharsets.US_ASCII);
    }
  }
}
