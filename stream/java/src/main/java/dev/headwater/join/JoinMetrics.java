package dev.headwater.join;

import java.util.EnumMap;
import java.util.Locale;
import java.util.Map;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.MetricGroup;

/**
 * The operator's own metrics, in the group {@code headwater}: {@code impressions_VERDICT} and
 * {@code conversions_VERDICT} counters, the watermark, the newest event time, and the delay from
 * produce time to emission of attributed conversions as cumulative buckets in milliseconds.
 */
final class JoinMetrics {
  private static final long[] LATENCY_BUCKETS_MS = {
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000
  };

  private final Map<JoinOutput.Topic, Counter> impressions =
      new EnumMap<>(JoinOutput.Topic.class);
  private final Map<JoinOutput.Topic, Counter> conversions =
      new EnumMap<>(JoinOutput.Topic.class);
  private final Counter sampled;
  private final Counter sampledOut;
  private final Counter[] latencyBuckets = new Counter[LATENCY_BUCKETS_MS.length];
  private final Counter latencyCount;
  private final Counter latencySumMs;
  private volatile long watermarkMs = Long.MIN_VALUE;
  private volatile long newestEventMs = -1;

  JoinMetrics(MetricGroup parent) {
    MetricGroup group = parent.addGroup("headwater");
    for (JoinOutput.Topic topic : JoinOutput.Topic.values()) {
      String verdict =
          switch (topic) {
            case SAMPLES -> "sample_rows";
            case ATTRIBUTIONS -> "attributed";
            case ORPHANS -> "orphan";
            case DUPLICATES -> "duplicate";
            case LATE, UNDECODABLE -> topic.name().toLowerCase(Locale.ROOT);
          };
      impressions.put(topic, group.counter("impressions_" + verdict));
      conversions.put(topic, group.counter("conversions_" + verdict));
    }
    sampled = group.counter("impressions_sampled");
    sampledOut = group.counter("impressions_sampled_out");
    for (int i = 0; i < latencyBuckets.length; i++) {
      latencyBuckets[i] = group.counter("latency_le_" + LATENCY_BUCKETS_MS[i]);
    }
    latencyCount = group.counter("latency_count");
    latencySumMs = group.counter("latency_sum_ms");
    group.gauge("watermark_ms", () -> watermarkMs);
    group.gauge("newest_event_ms", () -> newestEventMs);
  }

  void watermark(long ms) {
    watermarkMs = ms;
  }

  void event(long eventMs) {
    newestEventMs = Math.max(newestEventMs, eventMs);
  }

  void closed(boolean asSample) {
    (asSample ? sampled : sampledOut).inc();
  }

  void emitted(JoinOutput.Topic topic, boolean conversion, long producedMs, long joinedMs) {
    (conversion ? conversions : impressions).get(topic).inc();
    if (topic == JoinOutput.Topic.ATTRIBUTIONS) {
      long delayMs = joinedMs - producedMs;
      latencyCount.inc();
      latencySumMs.inc(delayMs);
      for (int i = 0; i < latencyBuckets.length; i++) {
        if (delayMs <= LATENCY_BUCKETS_MS[i]) {
          latencyBuckets[i].inc();
        }
      }
    }
  }
}
