package dev.headwater.join;

import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkGeneratorSupplier;
import org.apache.flink.api.common.eventtime.WatermarkOutput;

/**
 * One partition's watermark: behind its newest event that is not from the future. Flink keeps one of
 * these per partition and takes the least.
 */
public final class EventWatermarks implements WatermarkGenerator<Event> {
  /**
   * Of a backlog thousands of events come between two of Flink's own times to tell. What is due would
   * heap up and then be done at once, while nothing is read.
   */
  private static final int EVENTS_MAX = 256;

  private final long behindMs;
  private long newestMs = Long.MIN_VALUE;
  private int sinceEmitted;

  private EventWatermarks(long latenessMs) {
    this.behindMs = latenessMs + 1; // an event exactly `lateness` out of order is on time
  }

  /** For a config's lateness. */
  public static WatermarkGeneratorSupplier<Event> of(long latenessMs) {
    return context -> new EventWatermarks(latenessMs);
  }

  @Override
  public void onEvent(Event event, long recordMs, WatermarkOutput output) {
    if (event.clocked() && event.eventMs() > newestMs) {
      newestMs = event.eventMs();
    }
    if (++sinceEmitted >= EVENTS_MAX) {
      onPeriodicEmit(output);
    }
  }

  @Override
  public void onPeriodicEmit(WatermarkOutput output) {
    sinceEmitted = 0;
    if (newestMs != Long.MIN_VALUE) {
      output.emitWatermark(new Watermark(newestMs - behindMs));
    }
  }
}
