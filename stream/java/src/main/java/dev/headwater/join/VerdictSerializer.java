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

  private final String[] topics = new String[JoinOutput.Topic.values().length];
  private transient ByteWriter digits;

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
    ByteWriter about = digits.reset(); // topics/join_header.py says what the words are
    about.ascii(verdict.conversion() ? "conversions " : "impressions ");
    about.decimal(verdict.partition()).octet(' ').decimal(verdict.offset()).octet(' ');
    about.decimal(verdict.watermarkMs() == Long.MIN_VALUE ? -1 : verdict.watermarkMs());
    about.octet(' ').decimal(verdict.eventMs());
    about.octet(' ').decimal(verdict.producedMs()).octet(' ').decimal(verdict.joinedMs());
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
