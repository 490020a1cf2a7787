package dev.headwater.join;

import java.util.List;
import org.apache.flink.api.common.TaskInfo;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.typeutils.base.LongSerializer;
import org.apache.flink.runtime.state.KeyGroupRange;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.runtime.state.KeyedStateBackend;
import org.apache.flink.runtime.state.StateInitializationContext;
import org.apache.flink.runtime.state.StateSnapshotContext;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;

/**
 * The join as one keyed operator: a thin shell that gives {@link JoinLoop} its events, the watermark
 * and a place for its pages, and hands its verdicts to the sink.
 *
 * <p>Pairs live in {@link OpenPairs}, in memory; Flink's state gets what changed when a checkpoint
 * asks for it. So an event costs one look into a hash map, whatever the state backend, and a pair that
 * opens and closes between two checkpoints costs the backend nothing.
 */
public final class AttributionJoin extends AbstractStreamOperator<Verdict>
    implements OneInputStreamOperator<Event, Verdict> {
  private static final long serialVersionUID = 1L;

  private final JoinSettings settings;
  private final long futureBoundMs;
  private transient JoinMetrics metrics;
  private transient JoinLoop join;
  private transient Emitter emitter;
  private transient StreamRecord<Verdict> record;
  private transient ListState<Long> reached;
  private transient long watermarkMs;

  /** `futureBoundMs` is told in the reason of what is from the future. */
  public AttributionJoin(JoinSettings settings, long futureBoundMs) {
    this.settings = settings;
    this.futureBoundMs = futureBoundMs;
  }

  @Override
  public void initializeState(StateInitializationContext context) throws Exception {
    super.initializeState(context);
    KeyedStateBackend<PairKey> backend = getKeyedStateBackend();
    TaskInfo task = getRuntimeContext().getTaskInfo();
    int groupsMax = task.getMaxNumberOfParallelSubtasks();
    KeyGroupRange groups =
        KeyGroupRangeAssignment.computeKeyGroupRangeForOperatorIndex(
            groupsMax, task.getNumberOfParallelSubtasks(), task.getIndexOfThisSubtask());
    emitter = new Emitter();
    join = new JoinLoop(settings, new FlinkPages(backend, groups, groupsMax), emitter);
    // Flink keeps no watermark. Every instance keeps its own, and goes on from the greatest: what one
    // of them had reached was true for all, and what was decided by it stays decided.
    reached =
        context
            .getOperatorStateStore()
            .getUnionListState(new ListStateDescriptor<>("watermark", LongSerializer.INSTANCE));
    watermarkMs = Long.MIN_VALUE;
    if (context.isRestored()) {
      join.restore();
      for (long reachedMs : reached.get()) {
        watermarkMs = Math.max(watermarkMs, reachedMs);
      }
    }
  }

  @Override
  public void open() throws Exception {
    super.open();
    metrics = new JoinMetrics(getMetricGroup());
    record = new StreamRecord<>(null);
  }

  /** No event needs Flink's state: the key is set where pages are read or written. */
  @Override
  public boolean hasKeyContext1() {
    return false;
  }

  @Override
  public void processElement(StreamRecord<Event> element) throws Exception {
    Event event = element.getValue();
    if (event.error() != null) {
      undecodable(event, event.error());
    } else if (!event.clocked()) {
      undecodable(
          event,
          "event_ms: expected at most " + futureBoundMs + " ms ahead of its partition's running"
              + " event time and of the wall clock, got " + event.eventMs());
    } else {
      metrics.event(event.eventMs());
      join.onEvent(event, watermarkMs);
    }
  }

  @Override
  public void processWatermark(Watermark mark) throws Exception {
    watermarkMs = Math.max(watermarkMs, mark.getTimestamp());
    metrics.watermark(watermarkMs);
    join.onWatermark(watermarkMs);
    super.processWatermark(mark);
  }

  @Override
  public void snapshotState(StateSnapshotContext context) throws Exception {
    join.write();
    reached.update(List.of(watermarkMs));
    super.snapshotState(context);
  }

  private void undecodable(Event event, String reason) {
    emitter.emit(
        JoinOutput.Topic.UNDECODABLE,
        event.foreignKey(),
        event.payload(),
        event.conversion(),
        event.partition(),
        event.offset(),
        event.eventMs(),
        event.producedMs(),
        reason);
  }

  /** Verdicts to the sink, with the watermark and the time that they are given at. */
  private final class Emitter implements JoinOutput {
    @Override
    public void emit(
        Topic topic,
        byte[] key,
        byte[] value,
        boolean conversion,
        int partition,
        long offset,
        long eventMs,
        long producedMs,
        String reason) {
      long joinedMs = System.currentTimeMillis();
      metrics.emitted(topic, conversion, producedMs, joinedMs);
      Verdict verdict =
          new Verdict(
              topic, key, value, conversion, partition, offset, watermarkMs, eventMs, producedMs,
              joinedMs, reason);
      output.collect(record.replace(verdict));
    }

    @Override
    public void countClosed(boolean sampled) {
      metrics.closed(sampled);
    }
  }
}
