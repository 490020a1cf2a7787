package dev.headwater.join;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;

/**
 * All that the join remembers of one (user, item): open impressions with their conversions, waiting
 * conversions, and ids that must still be recognised as duplicates.
 */
final class PairState {
  static final long NO_TIMER = Long.MAX_VALUE;

  final PairKey key;
  final List<Impression> open = new ArrayList<>(1);
  /** Shared and unchangeable while it is empty, as most are. */
  List<Waiting> waiting = Collections.emptyList();
  List<Seen> seen = Collections.emptyList();
  /** Payloads that were written apart and are not needed any more. */
  List<Payload> dropped = Collections.emptyList();

  PairState(PairKey key) {
    this.key = key;
  }

  boolean isEmpty() {
    return open.isEmpty() && waiting.isEmpty() && seen.isEmpty();
  }

  void add(Waiting conversion) {
    waiting = grown(waiting, conversion);
  }

  void add(Seen id) {
    seen = grown(seen, id);
  }

  /** The payload is not needed any more. */
  void drop(Payload payload) {
    if (payload.isApart()) {
      dropped = grown(dropped, payload);
    }
  }

  private static <T> List<T> grown(List<T> list, T next) {
    List<T> longer = list.isEmpty() ? new ArrayList<>(1) : list;
    longer.add(next);
    return longer;
  }

  /** Takes the payload at an entry of `page` back into memory: it is written apart anew. */
  void bringHome(Page page, int index, Payload payload) {
    for (Impression impression : open) {
      if (impression.payload.isAt(page, index)) {
        impression.payload = payload;
      }
    }
    for (Waiting conversion : waiting) {
      if (conversion.payload.isAt(page, index)) {
        conversion.payload = payload;
      }
    }
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

  /**
   * An event's bytes: in memory, or in a page apart from the pair's own entry, or both. Small ones of
   * small pairs are written inside that entry.
   */
  static final class Payload {
    /** Null where they are in a page and were not read. */
    final byte[] bytes;

    final int from;
    final int length;
    /** Null while they are in no page of their own. */
    Page.Place place;

    Payload(byte[] bytes, int from, int length) {
      this.bytes = bytes;
      this.from = from;
      this.length = length;
    }

    static Payload apart(Page.Place place) {
      Payload payload = new Payload(null, 0, 0);
      payload.place = place;
      return payload;
    }

    boolean isApart() {
      return place != null;
    }

    private boolean isAt(Page page, int index) {
      return place != null && place.page() == page && place.index() == index;
    }
  }

  /** An impression whose last window has not closed. */
  static final class Impression {
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
    List<Label> labels = Collections.emptyList();

    void add(Label label) {
      labels = grown(labels, label);
    }
  }

  /** A conversion that belongs to an open impression. */
  static final class Label {
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
  static final class Waiting {
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
  static final class Seen {
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
