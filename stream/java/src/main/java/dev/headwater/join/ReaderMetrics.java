package dev.headwater.join;

import org.apache.flink.connector.kafka.source.metrics.KafkaSourceReaderMetrics;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition;
import org.apache.flink.metrics.groups.SourceReaderMetricGroup;

/**
 * Kafka's own, told where a partition stands once for many records: for each it would look the
 * partition up twice by its name.
 */
final class ReaderMetrics extends KafkaSourceReaderMetrics {
  private TopicPartition partition;
  private long offset;

  ReaderMetrics(SourceReaderMetricGroup group) {
    super(group);
  }

  @Override
  public void recordCurrentOffset(TopicPartition of, long at) {
    if (of != partition) {
      tell();
      partition = of;
    }
    offset = at;
  }

  /** Shows the newest offset; to be called from time to time, and when nothing more is there. */
  void tell() {
    if (partition != null) {
      super.recordCurrentOffset(partition, offset);
      partition = null;
    }
  }
}
