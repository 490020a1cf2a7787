package dev.headwater.join;

import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.connector.source.ReaderOutput;
import org.apache.flink.api.connector.source.SourceEvent;
import org.apache.flink.api.connector.source.SourceOutput;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.connector.kafka.source.split.KafkaPartitionSplit;
import org.apache.flink.core.io.InputStatus;

/**
 * Kafka's reader, with its partitions held back as {@link SplitAlignment} says. Flink's own watermark
 * alignment does the same by a message from the coordinator each so many milliseconds, and so bounds how
 * fast event time can pass in a replay; here the next partition is chosen as soon as one is ahead.
 */
final class AlignedReader implements SourceReader<Event, KafkaPartitionSplit> {
  /** Records at a turn: the task's own work between two turns is as long as that for a record. */
  private static final int BATCH = 16;

  /** Between two looks at the clocks. */
  private static final int RECORDS = 256;

  private static final Executor SOON =
      CompletableFuture.delayedExecutor(SplitAlignment.SILENT_MS / 4, TimeUnit.MILLISECONDS);

  private final SourceReader<Event, KafkaPartitionSplit> reader;
  private final SplitAlignment alignment;
  private Noting output;
  private int sinceLook;
  private CompletableFuture<Void> soon;

  AlignedReader(SourceReader<Event, KafkaPartitionSplit> reader, SplitAlignment alignment) {
    this.reader = reader;
    this.alignment = alignment;
  }

  @Override
  public InputStatus pollNext(ReaderOutput<Event> to) throws Exception {
    if (output == null || output.to != to) {
      output = new Noting(to);
    }
    InputStatus status = InputStatus.MORE_AVAILABLE;
    for (int i = 0; i < BATCH && status == InputStatus.MORE_AVAILABLE; i++) {
      status = reader.pollNext(output);
    }
    if (status != InputStatus.MORE_AVAILABLE || (sinceLook += BATCH) >= RECORDS) {
      sinceLook = 0;
      SplitAlignment.Change change = alignment.change(System.currentTimeMillis());
      if (!change.isEmpty()) {
        reader.pauseOrResumeSplits(change.hold(), change.release());
      }
    }
    return status;
  }

  @Override
  public CompletableFuture<Void> isAvailable() {
    CompletableFuture<Void> available = reader.isAvailable();
    if (available.isDone() || !alignment.holds()) {
      return available;
    }
    // The partition that the others wait for may have no more to bring: look again in any case.
    if (soon == null || soon.isDone()) {
      soon = CompletableFuture.runAsync(() -> {}, SOON);
    }
    return CompletableFuture.anyOf(available, soon).thenApply(any -> null);
  }

  @Override
  public void start() {
    reader.start();
  }

  @Override
  public List<KafkaPartitionSplit> snapshotState(long checkpointId) {
    return reader.snapshotState(checkpointId);
  }

  @Override
  public void addSplits(List<KafkaPartitionSplit> splits) {
    splits.forEach(split -> alignment.expect(split.splitId()));
    reader.addSplits(splits);
  }

  @Override
  public void notifyNoMoreSplits() {
    reader.notifyNoMoreSplits();
  }

  @Override
  public void handleSourceEvents(SourceEvent event) {
    reader.handleSourceEvents(event);
  }

  @Override
  public void notifyCheckpointComplete(long checkpointId) throws Exception {
    reader.notifyCheckpointComplete(checkpointId);
  }

  @Override
  public void notifyCheckpointAborted(long checkpointId) throws Exception {
    reader.notifyCheckpointAborted(checkpointId);
  }

  @Override
  public void close() throws Exception {
    reader.close();
  }

  /** An output that hands on what it gets. */
  private abstract static class Forwarding<O extends SourceOutput<Event>>
      implements SourceOutput<Event> {
    final O to;

    Forwarding(O to) {
      this.to = to;
    }

    @Override
    public void collect(Event event) {
      to.collect(event);
    }

    @Override
    public void collect(Event event, long recordMs) {
      to.collect(event, recordMs);
    }

    @Override
    public void emitWatermark(Watermark watermark) {
      to.emitWatermark(watermark);
    }

    @Override
    public void markIdle() {
      to.markIdle();
    }

    @Override
    public void markActive() {
      to.markActive();
    }
  }

  /** The task's output; hands out partitions' outputs that note what each brings. */
  private final class Noting extends Forwarding<ReaderOutput<Event>> implements ReaderOutput<Event> {
    Noting(ReaderOutput<Event> to) {
      super(to);
    }

    @Override
    public SourceOutput<Event> createOutputForSplit(String split) {
      return new OfSplit(to.createOutputForSplit(split), alignment.clock(split));
    }

    @Override
    public void releaseOutputForSplit(String split) {
      alignment.remove(split);
      to.releaseOutputForSplit(split);
    }
  }

  /** One partition's output. */
  private static final class OfSplit extends Forwarding<SourceOutput<Event>> {
    private final SplitAlignment.Clock clock;

    OfSplit(SourceOutput<Event> to, SplitAlignment.Clock clock) {
      super(to);
      this.clock = clock;
    }

    @Override
    public void collect(Event event) {
      clock.note(event);
      to.collect(event);
    }

    @Override
    public void collect(Event event, long recordMs) {
      clock.note(event);
      to.collect(event, recordMs);
    }
  }
}
