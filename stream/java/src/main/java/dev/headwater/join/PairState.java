package dev.headwater.join;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;

/**
 * All that the join remembers of one (user, item): open impressions with their conversions, waiting
 * conversions, and ids that must still be recognised as duplicates.
 */
class PairState {
  static final long NO_TIMER = Long.MAX_VALUE;

  final PairKey key;
  /** Impressions whose last window has not closed; like all lists here in no order, null = none. */
  Impression open;

  Waiting waiting;
  Seen seen;
  /** Where payloads lie apart that are not needed any more. */
  List<Page.Place> dropped = Collections.emptyList();

  PairState(PairKey key) {
    this.key = key;
  }

  /**
   * Part of a list that its entries are. Most lists hold one entry and all are walked often: a list
   * object and its array would be two more accesses to memory each time.
   */
  abstract static class Linked<T extends Linked<T>> {
    T next;

    static <T extends Linked<T>> T with(T first, T added) {
      added.next = first;
      return added;
    }

    /** The list without `gone`, which is in it. */
    static <T extends Linked<T>> T without(T first, T gone) {
      if (first == gone) {
        return first.next;
      }
      T before = first;
      while (before.next != gone) {
        before = before.next;
      }
      before.next = gone.next;
      return first;
    }

    static <T extends Linked<T>> int count(T first) {
      int count = 0;
      for (T each = first; each != null; each = each.next) {
        count++;
      }
      return count;
    }
  }

  boolean isEmpty() {
    return open == null && waiting == null && seen == null;
  }

  void add(Impression impression) {
    open = Linked.with(open, impression);
  }

  void remove(Impression impression) {
    open = Linked.without(open, impression);
  }

  void add(Waiting conversion) {
    waiting = Linked.with(waiting, conversion);
    conversion.waits = true;
  }

  void remove(Waiting conversion) {
    waiting = Linked.without(waiting, conversion);
    conversion.waits = false;
  }

  void add(Seen id) {
    seen = Linked.with(seen, id);
  }

  void remove(Seen id) {
    seen = Linked.without(seen, id);
  }

  /** Its payload is not needed any more. */
  void drop(Held<?> event) {
    if (event.isApart()) {
      dropped = dropped.isEmpty() ? new ArrayList<>(1) : dropped;
      dropped.add(event.place);
    }
  }

  /** Takes the payload at an entry of `page` back into memory: it is written apart anew. */
  void bringHome(Page page, int index, Span payload) {
    for (Impression each = open; each != null; each = each.next) {
      each.bringHome(page, index, payload);
    }
    for (Waiting each = waiting; each != null; each = each.next) {
      each.bringHome(page, index, payload);
    }
  }

  /** Takes it out of memory. */
  void clear() {
    open = null;
    waiting = null;
    seen = null;
  }

  Waiting firstWaiting() {
    Waiting first = null;
    for (Waiting each = waiting; each != null; each = each.next) {
      first = first == null || Waiting.BY_TIME.compare(each, first) < 0 ? each : first;
    }
    return first;
  }

  /** The first open impression whose early sample is still to come. */
  Impression firstEarly() {
    Impression first = null;
    for (Impression each = open; each != null; each = each.next) {
      first = each.earlyDone ? first : earlier(first, each);
    }
    return first;
  }

  Impression firstOpen() {
    Impression first = null;
    for (Impression each = open; each != null; each = each.next) {
      first = earlier(first, each);
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
   * An event that is kept with its bytes: in memory, or in a page apart from the pair's own entry, or
   * both. Small ones of small pairs are written inside that entry.
   */
  abstract static class Held<T extends Held<T>> extends Linked<T> {
    byte[] id;
    long eventMs;
    long producedMs;
    int partition;
    long offset;
    /** Null where they are in a page and were not read. */
    byte[] bytes;

    int from;
    int length;
    /** Null while they are in no page of their own. */
    Page.Place place;

    /** What every event brings. */
    void hold(Event event) {
      id = event.id();
      eventMs = event.eventMs();
      producedMs = event.producedMs();
      partition = event.partition();
      offset = event.offset();
      hold(event.payload(), 0, event.payload().length);
    }

    void hold(byte[] in, int first, int many) {
      bytes = in;
      from = first;
      length = many;
    }

    boolean isApart() {
      return place != null;
    }

    void bringHome(Page page, int index, Span payload) {
      if (place != null && place.page() == page && place.index() == index) {
        place = null;
        hold(payload.bytes, payload.from, payload.length());
      }
    }
  }

  /** An impression whose last window has not closed. */
  static final class Impression extends Held<Impression> {
    double keepRate;
    boolean kept;
    /** The time of its early sample has passed, whether or not there was one to write. */
    boolean earlyDone;
    /** Its conversions. */
    Label labels;

    void add(Label label) {
      labels = Linked.with(labels, label);
    }

    /** Its conversions, to be sorted or chosen from. */
    List<Label> allLabels() {
      if (labels == null) {
        return Collections.emptyList();
      }
      List<Label> all = new ArrayList<>(2);
      for (Label each = labels; each != null; each = each.next) {
        all.add(each);
      }
      return all;
    }
  }

  /** A conversion that belongs to an open impression. */
  static final class Label extends Linked<Label> {
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
  static final class Waiting extends Held<Waiting> {
    static final Comparator<Waiting> BY_TIME =
        Comparator.<Waiting>comparingLong(waiting -> waiting.eventMs)
            .thenComparing(waiting -> waiting.id, JoinSettings::compareIds);

    /** It is in its pair's list. */
    boolean waits;

    byte[] named;
    Kind kind;
    Double value;
  }

  /** An id that had its verdict; a second event with it is a duplicate. */
  static final class Seen extends Linked<Seen> {
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
