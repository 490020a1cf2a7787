package dev.headwater.join;

import java.io.IOException;
import java.util.Collection;
import java.util.List;
import java.util.Properties;
import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.connector.source.Boundedness;
import org.apache.flink.api.connector.source.Source;
import org.apache.flink.api.connector.source.SourceOutput;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.api.connector.source.SourceReaderContext;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.api.java.typeutils.ResultTypeQueryable;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.source.reader.RecordEmitter;
import org.apache.flink.connector.base.source.reader.RecordsWithSplitIds;
import org.apache.flink.connector.base.source.reader.synchronization.FutureCompletingBlockingQueue;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.KafkaSourceEnumState;
import org.apache.flink.connector.kafka.source.reader.KafkaPartitionSplitReader;
import org.apache.flink.connector.kafka.source.reader.KafkaSourceReader;
import org.apache.flink.connector.kafka.source.reader.fetcher.KafkaSourceFetcherManager;
import org.apache.flink.connector.kafka.source.split.KafkaPartitionSplit;
import org.apache.flink.connector.kafka.source.split.KafkaPartitionSplitState;
import org.apache.flink.core.io.SimpleVersionedSerializer;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.streaming.api.lineage.LineageVertex;
import org.apache.flink.streaming.api.lineage.LineageVertexProvider;
import org.apache.flink.util.UserCodeClassLoader;

/** Kafka's source whose readers are {@link AlignedReader}s; its state is Kafka's. */
public final class AlignedSource
    implements Source<Event, KafkaPartitionSplit, KafkaSourceEnumState>,
        ResultTypeQueryable<Event>,
        LineageVertexProvider {
  private static final long serialVersionUID = 1L;
  /** Fetches that wait for the task: as many as its thread takes while one more is on its way. */
  private static final int FETCHES_MAX = 4;

  private final KafkaSource<Event> source;
  private final Properties clients;
  private final EventDeserializer deserializer;
  private final long aheadMs;
  private final long heldMsMax;

  /**
   * `source` finds the partitions and where to begin; `clients` is whole, as of its consumers. For the
   * rest see {@link SplitAlignment}.
   */
  public AlignedSource(
      KafkaSource<Event> source,
      Properties clients,
      EventDeserializer deserializer,
      long aheadMs,
      long heldMsMax) {
    this.source = source;
    this.clients = clients;
    this.deserializer = deserializer;
    this.aheadMs = aheadMs;
    this.heldMsMax = heldMsMax;
  }

  @Override
  public SourceReader<Event, KafkaPartitionSplit> createReader(SourceReaderContext context) {
    deserializer.open(new Opening(context));
    ReaderMetrics metrics = new ReaderMetrics(context.metricGroup());
    FutureCompletingBlockingQueue<RecordsWithSplitIds<ConsumerRecord<byte[], byte[]>>> fetched =
        new FutureCompletingBlockingQueue<>(FETCHES_MAX);
    KafkaSourceFetcherManager fetching =
        new KafkaSourceFetcherManager(
            fetched,
            () -> new EventSplitReader(clients, context, metrics, deserializer),
            finished -> {});
    KafkaSourceReader<Event> reader =
        new KafkaSourceReader<>(
            fetched,
            fetching,
            retyped(AlignedSource::emit),
            new Configuration(),
            context,
            metrics);
    boolean bounded = getBoundedness() == Boundedness.BOUNDED;
    return new AlignedReader(reader, new SplitAlignment(aheadMs, heldMsMax, bounded));
  }

  private static void emit(Event event, SourceOutput<Event> to, KafkaPartitionSplitState split) {
    to.collect(event, event.producedMs());
    split.setCurrentOffset(event.offset() + 1);
  }

  /** Kafka's reader hands on what was fetched, whatever it is; its type says records. */
  @SuppressWarnings("unchecked")
  private static RecordEmitter<ConsumerRecord<byte[], byte[]>, Event, KafkaPartitionSplitState>
      retyped(RecordEmitter<Event, Event, KafkaPartitionSplitState> emitter) {
    return (RecordEmitter<ConsumerRecord<byte[], byte[]>, Event, KafkaPartitionSplitState>)
        (RecordEmitter<?, ?, ?>) emitter;
  }

  @Override
  public Boundedness getBoundedness() {
    return source.getBoundedness();
  }

  @Override
  public SplitEnumerator<KafkaPartitionSplit, KafkaSourceEnumState> createEnumerator(
      SplitEnumeratorContext<KafkaPartitionSplit> context) throws Exception {
    return source.createEnumerator(context);
  }

  @Override
  public SplitEnumerator<KafkaPartitionSplit, KafkaSourceEnumState> restoreEnumerator(
      SplitEnumeratorContext<KafkaPartitionSplit> context, KafkaSourceEnumState state)
      throws Exception {
    return source.restoreEnumerator(context, state);
  }

  @Override
  public SimpleVersionedSerializer<KafkaPartitionSplit> getSplitSerializer() {
    return source.getSplitSerializer();
  }

  @Override
  public SimpleVersionedSerializer<KafkaSourceEnumState> getEnumeratorCheckpointSerializer() {
    return source.getEnumeratorCheckpointSerializer();
  }

  @Override
  public TypeInformation<Event> getProducedType() {
    return RecordType.EVENT;
  }

  @Override
  public LineageVertex getLineageVertex() {
    return source.getLineageVertex();
  }

  /** What KafkaSource opens a deserializer with. */
  private record Opening(SourceReaderContext context)
      implements DeserializationSchema.InitializationContext {
    @Override
    public MetricGroup getMetricGroup() {
      return context.metricGroup().addGroup("deserializer");
    }

    @Override
    public UserCodeClassLoader getUserCodeClassLoader() {
      return context.getUserCodeClassLoader();
    }
  }

  /** Kafka's, whose fetches bring {@link Event}s. */
  private static final class EventSplitReader extends KafkaPartitionSplitReader {
    private final ReaderMetrics metrics;
    private final EventDeserializer deserializer;

    EventSplitReader(
        Properties clients,
        SourceReaderContext context,
        ReaderMetrics metrics,
        EventDeserializer deserializer) {
      super(clients, context, metrics);
      this.metrics = metrics;
      this.deserializer = deserializer;
    }

    /** What {@link #retyped} takes. */
    @Override
    @SuppressWarnings("unchecked")
    public RecordsWithSplitIds<ConsumerRecord<byte[], byte[]>> fetch() throws IOException {
      RecordsWithSplitIds<?> events = new FetchedEvents(super.fetch(), deserializer, metrics);
      return (RecordsWithSplitIds<ConsumerRecord<byte[], byte[]>>) events;
    }

    /** A partition may end while word to hold it or to let it go on is under way to its consumer. */
    @Override
    public void pauseOrResumeSplits(
        Collection<KafkaPartitionSplit> hold, Collection<KafkaPartitionSplit> release) {
      hold.forEach(split -> tell(List.of(split), List.of()));
      release.forEach(split -> tell(List.of(), List.of(split)));
    }

    private void tell(List<KafkaPartitionSplit> hold, List<KafkaPartitionSplit> release) {
      try {
        super.pauseOrResumeSplits(hold, release);
      } catch (IllegalStateException notAssigned) {
        // it has ended
      }
    }
  }
}
