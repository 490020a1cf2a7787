package dev.headwater.join;

import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Set;
import org.apache.flink.connector.base.source.reader.RecordsWithSplitIds;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition;

/**
 * What one fetch brought, as events. They are read off their records at once, in the thread that
 * fetches: that would else wait for the task's, which has the join to do.
 */
final class FetchedEvents implements RecordsWithSplitIds<Event> {
  private final RecordsWithSplitIds<ConsumerRecord<byte[], byte[]>> records;
  private final ReaderMetrics metrics;
  private final Iterator<OfSplit> splits;
  private OfSplit split;
  private Iterator<Event> events;

  private record OfSplit(String id, TopicPartition partition, List<Event> events) {}

  FetchedEvents(
      RecordsWithSplitIds<ConsumerRecord<byte[], byte[]>> records,
      EventDeserializer deserializer,
      ReaderMetrics metrics) {
    this.records = records;
    this.metrics = metrics;
    List<OfSplit> all = new ArrayList<>();
    for (String id = records.nextSplit(); id != null; id = records.nextSplit()) {
      TopicPartition partition = null;
      List<Event> own = new ArrayList<>();
      ConsumerRecord<byte[], byte[]> record;
      while ((record = records.nextRecordFromSplit()) != null) {
        if (partition == null) {
          partition = new TopicPartition(record.topic(), record.partition());
        }
        own.add(deserializer.event(record));
      }
      all.add(new OfSplit(id, partition, own));
    }
    splits = all.iterator();
  }

  @Override
  public String nextSplit() {
    if (!splits.hasNext()) {
      return null;
    }
    split = splits.next();
    events = split.events.iterator();
    return split.id;
  }

  @Override
  public Event nextRecordFromSplit() {
    if (events.hasNext()) {
      return events.next();
    }
    if (split.partition != null) {
      metrics.passed(split.partition, split.events.get(split.events.size() - 1).offset());
    }
    return null;
  }

  /** Partitions that were read to where they were to end. */
  @Override
  public Set<String> finishedSplits() {
    return records.finishedSplits();
  }

  @Override
  public void recycle() {
    records.recycle();
  }
}
