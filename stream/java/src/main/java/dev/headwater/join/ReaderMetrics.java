package dev.headwater.join;

import org.apache.flink.connector.kafka.source.metrics.KafkaSourceReaderMetrics;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition;
import org.apache.flink.metrics.groups.SourceReaderMetricGroup;

/**
 * Kafka's own, where the current offset is the task's: records are taken apart in the thread that
 * fetches them, ahead of it.
 */
final class ReaderMetrics extends KafkaSourceReaderMetrics {
  ReaderMetrics(SourceReaderMetricGroup group) {
    super(group);
  }

  /** Of the thread that fetches. */
  @Override
  public void recordCurrentOffset(TopicPartition partition, long offset) {}

  /** The task was given what `partition` has up to `offset`. */
  void passed(TopicPartition partition, long offset) {
    super.recordCurrentOffset(partition, offset);
  }
}
