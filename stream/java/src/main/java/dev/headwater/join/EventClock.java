package dev.headwater.join;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
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

  /** `stream` is 0 for impressions, 1 for conversions; partition and offset come from Kafka. */
  public Long eval(
      Integer stream, Integer partition, Long offset, Long eventMs, Long futureBoundMs) {
    if (clocks == null) {
      clocks = CLOCKS.get();
    }
    PartitionClock clock =
        clocks.computeIfAbsent(
            ((long) stream << 32) | partition, missing -> new PartitionClock(futureBoundMs));
    return clock.accepts(offset, eventMs, System.currentTimeMillis()) ? eventMs : null;
  }

  @Override
  public boolean isDeterministic() {
    return true; // as seen from the plan: one row, one answer
  }
}
