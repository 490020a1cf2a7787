package dev.headwater.join;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.table.functions.FunctionContext;
import org.apache.flink.table.functions.ScalarFunction;

/**
 * {@code event_clock(stream, partition, offset, event_ms, bound_ms)}: event_ms where the event may move its
 * partition's watermark, null where it is from the future (or undecodable).
 *
 * <p>The bound is an argument because a watermark generator has no job parameters. The planner evaluates it twice per row, in the projection and in the source's watermark
 * generator, on two instances. The clocks are therefore shared by all instances of one task thread,
 * and the verdict on the offset seen last is remembered, so that both get one answer.
 */
public final class EventClock extends ScalarFunction {
  private static final long serialVersionUID = 1L;
  private static final ThreadLocal<Map<Long, PartitionClock>> CLOCKS =
      ThreadLocal.withInitial(ConcurrentHashMap::new);

  private transient Map<Long, PartitionClock> clocks;
  private transient MetricGroup metrics;

  @Override
  public void open(FunctionContext context) {
    metrics = context.getMetricGroup();
  }

  /** `stream` is 0 for impressions, 1 for conversions; partition and offset come from Kafka. */
  public Long eval(
      Integer stream, Integer partition, Long offset, Long eventMs, Long futureBoundMs) {
    if (clocks == null) {
      clocks = CLOCKS.get();
    }
    PartitionClock clock = clocks.get(((long) stream << 32) | partition);
    if (clock == null) {
      clock = new PartitionClock(futureBoundMs);
      clocks.put(((long) stream << 32) | partition, clock);
      show(clock, stream == 1 ? "conversions" : "impressions", partition);
    }
    return clock.accepts(offset, eventMs, System.currentTimeMillis()) ? eventMs : null;
  }

  /** Of the two instances, whichever sees the partition first; both are of one task. */
  private void show(PartitionClock clock, String stream, int partition) {
    if (metrics == null) {
      return;
    }
    MetricGroup group =
        metrics.addGroup("headwater_clock").addGroup(stream).addGroup(String.valueOf(partition));
    group.gauge("running_ms", clock::runningMs);
    group.gauge("seen_wall_ms", clock::seenWallMs);
    group.gauge("future_events", clock::futureEvents);
    group.gauge("behind_ms", clock::behindMs);
  }

  @Override
  public boolean isDeterministic() {
    return true; // as seen from the plan: one row, one answer
  }
}
