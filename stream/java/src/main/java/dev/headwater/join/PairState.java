package dev.headwater.join;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;

/**
 * All that the join remembers of one (user, item): open impressions with their conversions, waiting
 * conversions, and ids that must still be recognised as duplicates.
 *
 * <p>Every part is an {@link Entry} with a number of its own. A pair of few parts is kept as one
 * value; once it has many it is *spread*: each entry under its number, so that a touch writes what it
 * changed and not the whole pair.
 */
final class PairState {
  static final long NO_TIMER = Long.MAX_VALUE;

  byte[] userId = {};
  byte[] itemId = {};
  /** The earliest timer registered and not yet fired. */
  long timerMs = NO_TIMER;
  /** Number of the next entry or payload. */
  long numberNext;
  boolean spread;
  final List<Impression> open = new ArrayList<>(1);
  final List<Waiting> waiting = new ArrayList<>(0);
  final List<Seen> seen = new ArrayList<>(1);
  /** Numbers of entries that were stored and are no more; only while spread. */
  final List<Long> dropped = new ArrayList<>(0);

  boolean isEmpty() {
    return open.isEmpty() && waiting.isEmpty() && seen.isEmpty();
  }

  int size() {
    int size = open.size() + waiting.size() + seen.size();
    for (Impression impression : open) {
      size += impression.labels.size();
    }
    return size;
  }

  Waiting firstWaiting() {
    Waiting first = null;
    for (Waiting next : waiting) {
      first = first == null || Waiting.BY_TIME.compare(next, first) < 0 ? next : first;
    }
    return first;
  }

  /** The first open impression whose early sample is still to come. */
  Impression firstEarly() {
    Impression first = null;
    for (Impression next : open) {
      first = next.earlyDone ? first : earlier(first, next);
    }
    return first;
  }

  Impression firstOpen() {
    Impression first = null;
    for (Impression next : open) {
      first = earlier(first, next);
    }
    return first;
  }

  private static Impression earlier(Impression a, Impression b) {
    if (a == null || b.eventMs < a.eventMs) {
      return b;
    }
    return b.eventMs == a.eventMs && JoinSettings.compareIds(b.id, a.id) < 0 ? b : a;
  }

  /** Bytes kept inside an entry: `length` from `from`, or apart under `number` where they are large. */
  record Payload(byte[] bytes, int from, int length, long number) {
    boolean inline() {
      return bytes != null;
    }
  }

  /** A part of the pair that is stored on its own while the pair is spread. */
  abstract static class Entry {
    /** -1 until it is stored under one. */
    long number = -1;
    boolean dirty = true;
  }

  /** An impression whose last window has not closed. */
  static final class Impression extends Entry {
    byte[] id;
    long eventMs;
    long producedMs;
    int partition;
    long offset;
    Payload payload;
    double keepRate;
    boolean kept;
    /** The time of its early sample has passed, whether or not there was one to write. */
    boolean earlyDone;
    /** Its conversions, in no order. */
    final List<Label> labels = new ArrayList<>(0);
  }

  /** A conversion that belongs to an open impression. */
  static final class Label extends Entry {
    static final Comparator<Label> BY_TIME =
        Comparator.<Label>comparingLong(label -> label.eventMs)
            .thenComparing(label -> label.id, JoinSettings::compareIds);

    Kind kind;
    byte[] id;
    long eventMs;
    long producedMs;
    Double value;
    /** Its kind's label in the early sample. */
    boolean early;
    /** Its kind's label in a correction. */
    boolean corrected;
  }

  /** A conversion on time that belongs to no impression yet. */
  static final class Waiting extends Entry {
    static final Comparator<Waiting> BY_TIME =
        Comparator.<Waiting>comparingLong(waiting -> waiting.eventMs)
            .thenComparing(waiting -> waiting.id, JoinSettings::compareIds);

    byte[] id;
    byte[] named;
    Kind kind;
    long eventMs;
    long producedMs;
    int partition;
    long offset;
    Double value;
    Payload payload;
  }

  /** An id that had its verdict; a second event with it is a duplicate. */
  static final class Seen extends Entry {
    final boolean conversion;
    final byte[] id;
    final long eventMs;

    Seen(boolean conversion, byte[] id, long eventMs) {
      this.conversion = conversion;
      this.id = id;
      this.eventMs = eventMs;
    }
  }
}
