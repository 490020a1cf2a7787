package dev.headwater.join;

/**
 * Running event time of one partition, and the verdict "from the future" on each of its events.
 *
 * <p>An event is from the future if it lies more than the bound ahead of the wall clock, or of the
 * running event time plus the wall time that passed since that moved. A long real gap must not wedge
 * a partition for ever, so after {@link #GAP_EVENTS} future events in a row that agree within the
 * bound (and are not ahead of the wall clock) the running time follows them.
 */
final class PartitionClock {
  static final int GAP_EVENTS = 100;
  /** How long the farthest event behind is remembered, for a metric. */
  private static final long BEHIND_KEPT_MS = 60_000;

  private final long boundMs;
  private long runningMs = -1;
  private long movedWallMs;
  private long lastOffset = -1;
  private boolean lastAccepted;
  private int futureRun;
  private long futureLowMs;
  private long futureHighMs;
  // Read by the metrics' threads; only the thread that fetches writes.
  private volatile long shownRunningMs = -1;
  private volatile long seenWallMs = -1;
  private volatile long futureEvents;
  private volatile long behindMs;
  private volatile long behindWallMs;

  PartitionClock(long boundMs) {
    this.boundMs = boundMs;
  }

  /** Judges the event at `offset`; asked again about the same offset it repeats its answer. */
  boolean accepts(long offset, long eventMs, long wallMs) {
    if (offset != lastOffset) {
      lastOffset = offset;
      lastAccepted = judge(eventMs, wallMs);
      note(eventMs, wallMs);
    }
    return lastAccepted;
  }

  /** The greatest accepted event time; -1 before the first. */
  long runningMs() {
    return shownRunningMs;
  }

  /** Wall clock at which the newest event was read; -1 before the first. */
  long seenWallMs() {
    return seenWallMs;
  }

  /** Events judged to be from the future. */
  long futureEvents() {
    return futureEvents;
  }

  /** How far the farthest accepted event of the last minute lay behind the running time. */
  long behindMs() {
    return System.currentTimeMillis() - behindWallMs > BEHIND_KEPT_MS ? 0 : behindMs;
  }

  private void note(long eventMs, long wallMs) {
    seenWallMs = wallMs;
    if (!lastAccepted) {
      futureEvents++;
      return;
    }
    shownRunningMs = runningMs;
    long behind = runningMs - eventMs;
    if (behind > 0 && (behind >= behindMs || wallMs - behindWallMs > BEHIND_KEPT_MS)) {
      behindMs = behind;
      behindWallMs = wallMs;
    }
  }

  private boolean judge(long eventMs, long wallMs) {
    if (eventMs - boundMs > wallMs) {
      return false;
    }
    boolean near =
        runningMs < 0 || eventMs - boundMs - Math.max(0, wallMs - movedWallMs) <= runningMs;
    if (!near && !followsGap(eventMs)) {
      return false;
    }
    futureRun = 0;
    if (eventMs > runningMs) {
      runningMs = eventMs;
      movedWallMs = wallMs;
    }
    return true;
  }

  private boolean followsGap(long eventMs) {
    long low = futureRun == 0 ? eventMs : Math.min(futureLowMs, eventMs);
    long high = futureRun == 0 ? eventMs : Math.max(futureHighMs, eventMs);
    boolean agrees = high - low <= boundMs;
    futureLowMs = agrees ? low : eventMs;
    futureHighMs = agrees ? high : eventMs;
    futureRun = agrees ? futureRun + 1 : 1;
    return futureRun >= GAP_EVENTS;
  }
}
