package dev.headwater.join;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Which of a reader's partitions to hold back, so that a backlog is read about in order of event time.
 *
 * <p>A consumer reads what is there, partition by partition. Conversions are fewer than impressions: of
 * a backlog they would all be read in its first moments, and each would wait in the join's memory for an
 * impression that is hours of event time away. So a partition that is more than `aheadMs` ahead of the
 * slowest one is held until that has come closer. The watermark is the slowest one's anyway: nothing
 * is judged later for it.
 *
 * <p>The slowest partition itself is always read. One that has brought nothing for {@link #SILENT_MS} is
 * not waited for; one that has not brought anything yet is the slowest, for as long from the first
 * record of any on. At the head of the log nothing is held at all. Time is given; not thread-safe.
 */
final class SplitAlignment {
  /** A partition that was read to its end must not hold the others back for longer. */
  static final long SILENT_MS = 200;
  /** Records younger than this are no backlog. */
  static final long BACKLOG_MS = 10_000;

  private final long aheadMs;
  private final long heldMsMax;
  private final boolean bounded;
  private final Map<String, Clock> clocks = new HashMap<>();
  private int held;

  /** What one partition has brought. */
  static final class Clock {
    private final String split;
    private long newestMs = Long.MIN_VALUE;
    private long producedMs;
    private long records;
    private long recordsBefore;
    private long recordsReleased;
    private long broughtMs;
    private boolean held;

    private Clock(String split) {
      this.split = split;
    }

    /** Notes a record; its event time counts where it may move the watermark. */
    void note(Event event) {
      records++;
      producedMs = event.producedMs();
      if (event.clocked() && event.eventMs() > newestMs) {
        newestMs = event.eventMs();
      }
    }
  }

  /** What to hold from now on, and what no longer. */
  record Change(List<String> hold, List<String> release) {
    boolean isEmpty() {
      return hold.isEmpty() && release.isEmpty();
    }
  }

  /**
   * Nothing is held for longer than `heldMsMax`, else it would pass for an idle partition.
   * `bounded` = all of it is backlog.
   */
  SplitAlignment(long aheadMs, long heldMsMax, boolean bounded) {
    this.aheadMs = aheadMs;
    this.heldMsMax = heldMsMax;
    this.bounded = bounded;
  }

  /** The clock of a partition, new or known. */
  Clock clock(String split) {
    return clocks.computeIfAbsent(split, Clock::new);
  }

  /** The partition is about to be read: it may be far behind the others, which come first. */
  void expect(String split) {
    clock(split);
  }

  /** The partition was read to its end. */
  void remove(String split) {
    Clock gone = clocks.remove(split);
    held -= gone != null && gone.held ? 1 : 0;
  }

  /** Whether anything is held: then {@link #change} must be asked again soon, whatever comes. */
  boolean holds() {
    return held > 0;
  }

  private static boolean awaited(Clock clock, long nowMs) {
    return clock.held || nowMs - clock.broughtMs < SILENT_MS;
  }

  /** Decides anew, at the wall clock `nowMs`. */
  Change change(long nowMs) {
    Clock slowest = null;
    boolean begun = false;
    long producedMs = Long.MAX_VALUE; // the oldest record of those that bring something
    for (Clock clock : clocks.values()) {
      if (clock.records != clock.recordsBefore) {
        clock.recordsBefore = clock.records;
        clock.broughtMs = nowMs;
      }
      if (clock.records > 0) {
        begun = true;
        producedMs = awaited(clock, nowMs) ? Math.min(producedMs, clock.producedMs) : producedMs;
      }
    }
    for (Clock clock : clocks.values()) {
      if (begun && clock.broughtMs == 0) {
        clock.broughtMs = nowMs;
      }
      boolean known = clock.newestMs != Long.MIN_VALUE || clock.records == 0;
      if (known && awaited(clock, nowMs) && (slowest == null || clock.newestMs < slowest.newestMs)) {
        slowest = clock;
      }
    }
    if (slowest != null && slowest.records > 0) {
      producedMs = slowest.producedMs;
    }
    boolean backlog = slowest != null && begun && (bounded || nowMs - producedMs > BACKLOG_MS);
    Change change = new Change(new ArrayList<>(0), new ArrayList<>(0));
    for (Clock clock : clocks.values()) {
      boolean hold =
          backlog
              && clock.newestMs != Long.MIN_VALUE
              && clock.newestMs - aheadMs > slowest.newestMs
              && (clock.held
                  ? nowMs - clock.broughtMs <= heldMsMax
                  : clock.records > clock.recordsReleased); // else it was let go on for nothing
      if (hold != clock.held) {
        clock.held = hold;
        held += hold ? 1 : -1;
        clock.broughtMs = nowMs; // once released it has its time to bring something
        clock.recordsReleased = clock.records;
        (hold ? change.hold : change.release).add(clock.split);
      }
    }
    return change;
  }
}
