package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.flink.api.common.serialization.DeserializationSchema.InitializationContext;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.util.Collector;

/**
 * Kafka records of both topics to {@link Event}s: validated once, here, and held against their
 * partition's clock. Bytes that are no event become one with an error, never an exception.
 */
public final class EventDeserializer implements KafkaRecordDeserializationSchema<Event> {
  private static final long serialVersionUID = 1L;
  /** A foreign producer's key beyond this is dropped; headers say where the source record lies. */
  private static final int KEY_BYTES_MAX = 33_000;

  private static final int ERROR_PAIRS = 256;

  private final String impressions;
  private final JoinSettings settings;
  private final int bytesMax;
  private final long futureBoundMs;
  private transient EventScanner[] scanners;
  private transient PartitionClock[][] clocks;
  private transient MetricGroup metrics;

  /** `impressions` is the one topic's name, every other record is a conversion. */
  public EventDeserializer(
      String impressions, JoinSettings settings, int bytesMax, long futureBoundMs) {
    this.impressions = impressions;
    this.settings = settings;
    this.bytesMax = bytesMax;
    this.futureBoundMs = futureBoundMs;
  }

  @Override
  public void open(InitializationContext context) {
    metrics = context.getMetricGroup();
    scanners = new EventScanner[] {scanner(false), scanner(true)};
    clocks = new PartitionClock[2][0];
  }

  private EventScanner scanner(boolean conversions) {
    return new EventScanner(
        conversions, settings.kindNames(), !settings.keepRateByDomain().isEmpty());
  }

  /** Kafka's source wants one; our readers ask for {@link #event}. */
  @Override
  public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Event> out) {
    out.collect(event(record));
  }

  /** The event that `record` is, with an error where it is none; in order of offsets. */
  Event event(ConsumerRecord<byte[], byte[]> record) {
    boolean conversion = !record.topic().equals(impressions);
    byte[] message = record.value();
    EventScanner scanner = scanners[conversion ? 1 : 0];
    try {
      requireSize(message);
      scanner.scan(message);
    } catch (BadEvent bad) {
      return undecodable(record, conversion, bad.getMessage());
    }
    boolean clocked =
        clock(conversion, record.partition())
            .accepts(record.offset(), scanner.eventMs, System.currentTimeMillis());
    return new Event(
        conversion,
        PairKey.of(scanner.userId, scanner.itemId),
        scanner.id,
        scanner.eventMs,
        scanner.kind,
        scanner.named,
        scanner.domain,
        scanner.value,
        message,
        record.partition(),
        record.offset(),
        record.timestamp(),
        clocked,
        null,
        clocked ? null : foreignKey(record));
  }

  private Event undecodable(
      ConsumerRecord<byte[], byte[]> record, boolean conversion, String error) {
    byte[] message = record.value();
    // Such events have no pair; spread them so that a burst does not land on one task.
    int spread = Arrays.hashCode(message) % ERROR_PAIRS;
    byte[] none = String.valueOf(spread).getBytes(StandardCharsets.US_ASCII);
    return new Event(
        conversion,
        PairKey.of(new Span(), Span.of(none)),
        null,
        -1,
        -1,
        null,
        null,
        null,
        message != null && message.length > bytesMax ? Arrays.copyOf(message, bytesMax) : message,
        record.partition(),
        record.offset(),
        record.timestamp(),
        false,
        error,
        foreignKey(record));
  }

  private static byte[] foreignKey(ConsumerRecord<byte[], byte[]> record) {
    byte[] key = record.key();
    return key != null && key.length > KEY_BYTES_MAX ? null : key;
  }

  /**
   * `produce` refuses an event over the limit, but compression takes a foreign producer's past the
   * broker's limit. No output topic could hold it, so as many of its bytes as fit are kept.
   */
  private void requireSize(byte[] message) throws BadEvent {
    if (message != null && message.length > bytesMax) {
      throw new BadEvent(
          "size: expected at most " + bytesMax + " bytes, got " + message.length
              + "; the first " + bytesMax + " are kept");
    }
  }

  private PartitionClock clock(boolean conversion, int partition) {
    int topic = conversion ? 1 : 0;
    if (partition >= clocks[topic].length) {
      clocks[topic] = Arrays.copyOf(clocks[topic], partition + 1);
    }
    PartitionClock clock = clocks[topic][partition];
    if (clock == null) {
      clock = new PartitionClock(futureBoundMs);
      clocks[topic][partition] = clock;
      show(clock, conversion ? "conversions" : "impressions", partition);
    }
    return clock;
  }

  private void show(PartitionClock clock, String stream, int partition) {
    MetricGroup group =
        metrics.addGroup("headwater_clock").addGroup(stream).addGroup(String.valueOf(partition));
    group.gauge("running_ms", clock::runningMs);
    group.gauge("seen_wall_ms", clock::seenWallMs);
    group.gauge("future_events", clock::futureEvents);
    group.gauge("behind_ms", clock::behindMs);
  }

  @Override
  public TypeInformation<Event> getProducedType() {
    return RecordType.EVENT;
  }
}
