package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.Properties;
import org.apache.flink.connector.kafka.lineage.DefaultKafkaDatasetFacet;
import org.apache.flink.connector.kafka.lineage.DefaultKafkaDatasetIdentifier;
import org.apache.flink.connector.kafka.lineage.KafkaDatasetFacet;
import org.apache.flink.connector.kafka.lineage.KafkaDatasetFacetProvider;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.internals.RecordHeader;

/** Verdicts to Kafka records: every topic from one sink, so that one transaction holds them all. */
public final class VerdictSerializer
    implements KafkaRecordSerializationSchema<Verdict>, KafkaDatasetFacetProvider {
  private static final long serialVersionUID = 1L;
  private static final byte[] IMPRESSIONS = "impressions".getBytes(StandardCharsets.US_ASCII);
  private static final byte[] CONVERSIONS = "conversions".getBytes(StandardCharsets.US_ASCII);

  private final String[] topics = new String[JoinOutput.Topic.values().length];
  private transient ByteWriter digits;
  private transient long watermarkMs;
  private transient byte[] watermark;

  /** The topics are `prefix.NAME`. */
  public VerdictSerializer(String prefix) {
    for (JoinOutput.Topic topic : JoinOutput.Topic.values()) {
      topics[topic.ordinal()] = prefix + "." + topic.name().toLowerCase(Locale.ROOT);
    }
  }

  @Override
  public ProducerRecord<byte[], byte[]> serialize(
      Verdict verdict, KafkaSinkContext context, Long recordMs) {
    if (digits == null) {
      digits = new ByteWriter();
    }
    if (watermark == null || watermarkMs != verdict.watermarkMs()) {
      watermarkMs = verdict.watermarkMs();
      watermark = ascii(watermarkMs == Long.MIN_VALUE ? -1 : watermarkMs);
    }
    List<Header> headers = new ArrayList<>(8);
    headers.add(
        new RecordHeader("hw_stream", verdict.conversion() ? CONVERSIONS : IMPRESSIONS));
    headers.add(new RecordHeader("hw_partition", ascii(verdict.partition())));
    headers.add(new RecordHeader("hw_offset", ascii(verdict.offset())));
    headers.add(new RecordHeader("hw_watermark_ms", watermark));
    headers.add(new RecordHeader("hw_event_ms", ascii(verdict.eventMs())));
    headers.add(new RecordHeader("hw_produced_ms", ascii(verdict.producedMs())));
    headers.add(new RecordHeader("hw_joined_ms", ascii(verdict.joinedMs())));
    if (verdict.reason() != null) {
      headers.add(new RecordHeader("hw_reason", ascii(verdict.reason())));
    }
    return new ProducerRecord<>(
        topics[verdict.topic().ordinal()], null, null, verdict.key(), verdict.value(), headers);
  }

  /** Names the topics: the sink asks the broker for transactions on them that a crash left open. */
  @Override
  public Optional<KafkaDatasetFacet> getKafkaDatasetFacet() {
    return Optional.of(
        new DefaultKafkaDatasetFacet(
            DefaultKafkaDatasetIdentifier.ofTopics(List.of(topics)), new Properties()));
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
