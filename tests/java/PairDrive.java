package dev.headwater.join;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.table.api.dataview.MapView;

/**
 * The operator's parts without Flink, for counts that Flink would take hours for.
 *
 * <p>`join`: events and watermarks in, records out; state goes through its bytes at each touch, and
 * the cache of spread pairs is lost now and then, as by a restart. `scan`: bytes in, reasons out.
 */
public final class PairDrive {
  private PairDrive() {}

  /** `join KINDS POLICY ELAPSED LATENESS KEPT RATES RESTART_EVERY` or `scan STREAM KINDS`. */
  public static void main(String[] arguments) throws Exception {
    DataInputStream in = new DataInputStream(new BufferedInputStream(System.in, 1 << 16));
    DataOutputStream out = new DataOutputStream(new BufferedOutputStream(System.out, 1 << 16));
    if (arguments[0].equals("scan")) {
      scan(arguments, in, out);
    } else {
      new Join(arguments, out).run(in);
    }
    out.flush();
  }

  private static byte[] bytes(DataInputStream in) throws Exception {
    byte[] content = new byte[in.readInt()];
    in.readFully(content);
    return content;
  }

  private static void scan(String[] arguments, DataInputStream in, DataOutputStream out)
      throws Exception {
    Set<String> kinds = new TreeSet<>(Set.of(arguments[2].split(",")));
    EventScanner scanner = new EventScanner(arguments[1].equals("conversions"), kinds, true);
    while (in.readByte() != 'E') {
      String reason = "";
      try {
        scanner.scan(bytes(in));
      } catch (BadEvent bad) {
        reason = bad.getMessage();
      }
      out.writeUTF(reason.length() > 1000 ? reason.substring(0, 1000) : reason);
    }
  }

  /** What Flink would keep for one key. */
  private static final class Kept {
    byte[] pair;
    long timerMs = PairState.NO_TIMER;
    final MapView<Long, byte[]> payloads = new MapView<>();
    final MapView<Long, byte[]> entries = new MapView<>();
  }

  private static final class Join implements JoinOutput {
    private final JoinSettings settings;
    private final DataOutputStream out;
    private final PairJoin join;
    private final int restartEvery;
    private final Map<String, Kept> pairs = new HashMap<>();
    private PairStore store;
    private long watermarkMs = Long.MIN_VALUE;
    private Kept current;
    private int touches;

    Join(String[] arguments, DataOutputStream out) {
      settings =
          new JoinSettings(
              JoinSettings.kinds(arguments[1]),
              arguments[2].equals("correct"),
              Long.parseLong(arguments[3]),
              Long.parseLong(arguments[4]),
              Double.parseDouble(arguments[5]),
              JoinSettings.rates(arguments[6]));
      restartEvery = Integer.parseInt(arguments[7]);
      this.out = out;
      join = new PairJoin(settings, this);
    }

    void run(DataInputStream in) throws Exception {
      Set<String> kinds = new TreeSet<>();
      settings.kinds().forEach(kind -> kinds.add(kind.toString()));
      EventScanner impressions = new EventScanner(false, kinds, true);
      EventScanner conversions = new EventScanner(true, kinds, true);
      for (long offset = 0; ; ) {
        int tag = in.readByte();
        if (tag == 'E') {
          break;
        } else if (tag == 'W') {
          watermarkMs = in.readLong();
          for (Kept kept : pairs.values()) {
            if (kept.timerMs <= watermarkMs) {
              kept.timerMs = PairState.NO_TIMER;
              touch(kept, null);
            }
          }
          pairs.values().removeIf(kept -> kept.pair == null);
        } else {
          boolean conversion = tag == 'C';
          EventScanner scanner = conversion ? conversions : impressions;
          byte[] payload = bytes(in);
          scanner.scan(payload);
          String key = new String(scanner.userId, "UTF-8") + '\u001f' + new String(scanner.itemId, "UTF-8");
          Event event =
              new Event(
                  conversion, scanner.id, scanner.userId, scanner.itemId, scanner.eventMs,
                  conversion
                      ? Kind.of(settings.kinds(), scanner.kind, 0, scanner.kind.length)
                      : null,
                  scanner.named, conversion ? null : scanner.kind, scanner.value, payload, 0,
                  offset++, scanner.eventMs + 7);
          touch(pairs.computeIfAbsent(key, missing -> new Kept()), event);
        }
      }
      for (Map.Entry<String, Kept> left : pairs.entrySet()) {
        if (left.getValue().pair != null) {
          throw new IllegalStateException("state left behind: " + left.getKey());
        }
      }
    }

    private void touch(Kept kept, Event event) throws Exception {
      if (store == null || ++touches % restartEvery == 0) {
        store = new PairStore(new PairCodec(settings.kinds()));
      }
      current = kept;
      PairState state = store.read(kept.pair, kept.entries);
      if (event == null) {
        join.onWatermark(state, watermarkMs);
      } else {
        join.onEvent(state, event, watermarkMs);
      }
      if (state.timerMs <= watermarkMs) {
        state.timerMs = PairState.NO_TIMER;
      }
      long dueMs = join.nextDueMs(state);
      if (dueMs < state.timerMs) {
        state.timerMs = dueMs;
      }
      kept.timerMs = Math.min(kept.timerMs, state.timerMs);
      kept.pair = store.write(state, kept.entries);
      boolean leftover = kept.payloads.entries().iterator().hasNext();
      leftover |= kept.entries.entries().iterator().hasNext();
      if (kept.pair == null && leftover) {
        throw new IllegalStateException("entries or payloads left behind");
      }
    }

    @Override
    public void emit(
        Topic topic, byte[] key, byte[] value, boolean conversion, int partition, long offset,
        long eventMs, long producedMs, String reason) {
      try {
        out.writeByte(topic.ordinal());
        out.writeLong(offset);
        out.writeLong(watermarkMs);
        out.writeInt(value.length);
        out.write(value);
      } catch (Exception failed) {
        throw new IllegalStateException(failed);
      }
    }

    @Override
    public void countClosed(boolean sampled) {}

    @Override
    public byte[] load(long number) {
      try {
        return current.payloads.get(number);
      } catch (Exception failed) {
        throw new IllegalStateException(failed);
      }
    }

    @Override
    public void keep(long number, byte[] payload) {
      try {
        current.payloads.put(number, payload);
      } catch (Exception failed) {
        throw new IllegalStateException(failed);
      }
    }

    @Override
    public void drop(long number) {
      try {
        current.payloads.remove(number);
      } catch (Exception failed) {
        throw new IllegalStateException(failed);
      }
    }
  }
}
