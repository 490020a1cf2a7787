package dev.headwater.join;

import java.nio.charset.StandardCharsets;
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
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.internals.RecordHeaders;

/** Verdicts to Kafka records: every topic from one sink, so that one transaction holds them all. */
public final class VerdictSerializer
    implements KafkaRecordSerializationSchema<Verdict>, KafkaDatasetFacetProvider {
  private static final long serialVersionUID = 1L;
  private static final byte[] CONVERSIONS = ascii("conversions ");
  private static final byte[] IMPRESSIONS = ascii("impressions ");

  private final String[] topics = new String[JoinOutput.Topic.values().length];
  private transient ByteWriter digits;
  private transient Word watermark;
  private transient Word joined;

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
      watermark = new Word();
      joined = new Word();
    }
    ByteWriter about = digits.reset(); // topics/join_header.py says what the words are
    about.raw(verdict.conversion() ? CONVERSIONS : IMPRESSIONS);
    about.decimal(verdict.partition()).octet(' ').decimal(verdict.offset());
    about.raw(watermark.of(verdict.watermarkMs() == Long.MIN_VALUE ? -1 : verdict.watermarkMs()));
    about.octet(' ').decimal(verdict.eventMs()).octet(' ').decimal(verdict.producedMs());
    about.raw(joined.of(verdict.joinedMs()));
    Header source = new RecordHeader("hw_join", about.toBytes());
    Header[] headers =
        verdict.reason() == null
            ? new Header[] {source}
            : new Header[] {source, new RecordHeader("hw_reason", ascii(verdict.reason()))};
    return new ProducerRecord<>(
        topics[verdict.topic().ordinal()], null, null, verdict.key(), verdict.value(),
        new RecordHeaders(headers)); // as these they are copied at once, and not one by one
  }

  /** Names the topics: the sink asks the broker for transactions on them that a crash left open. */
  @Override
  public Optional<KafkaDatasetFacet> getKafkaDatasetFacet() {
    return Optional.of(
        new DefaultKafkaDatasetFacet(
            DefaultKafkaDatasetIdentifier.ofTopics(List.of(topics)), new Properties()));
  }

  /** A number that is the same for many records, as a space and its digits. */
  private static final class Word {
    private final ByteWriter digits = new ByteWriter();
    private long number;
    private byte[] written;

    byte[] of(long asked) {
      if (written == null || asked != number) {
        number = asked;
        written = digits.reset().octet(' ').decimal(asked).toBytes();
      }
      return written;
    }
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
