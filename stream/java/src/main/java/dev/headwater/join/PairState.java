package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;

/**
 * All that the join remembers of one (user, item): open impressions, waiting conversions, and ids
 * that must still be recognised as duplicates.
 */
final class PairState {
  static final long NO_TIMER = Long.MAX_VALUE;

  String userId = "";
  String itemId = "";
  /** The earliest timer registered and not yet fired. */
  long timerMs = NO_TIMER;
  /** Number of the next payload kept apart. */
  long payloadNext;
  final List<Impression> open = new ArrayList<>(1);
  final List<Waiting> waiting = new ArrayList<>(0);
  final List<Seen> seen = new ArrayList<>(1);

  boolean isEmpty() {
    return open.isEmpty() && waiting.isEmpty() && seen.isEmpty();
  }

  /** Order by code point, which is that of the UTF-8 bytes and of most languages' strings. */
  static int compareIds(String a, String b) {
    return Arrays.compareUnsigned(
        a.getBytes(StandardCharsets.UTF_8), b.getBytes(StandardCharsets.UTF_8));
  }

  /** Bytes kept inside the state (`inline`), or apart under `number` where they are large. */
  record Payload(byte[] inline, long number) {}

  /** An impression whose last window has not closed. */
  static final class Impression {
    String id;
    long eventMs;
    long producedMs;
    int partition;
    long offset;
    Payload payload;
    boolean earlyDone;
    int revisions;
    /** Event and produce time of the newest event among the impression and its conversions. */
    long newestEventMs;
    long newestProducedMs;
    final List<Label> labels = new ArrayList<>(0);
  }

  /** The first conversion of one kind that belongs to an impression. */
  static final class Label {
    static final Comparator<Label> BY_TIME =
        Comparator.<Label>comparingLong(l -> l.eventMs).thenComparing(
            l -> l.conversionId, PairState::compareIds);

    String kind;
    String conversionId;
    long eventMs;
    long producedMs;
    Double value;
    /** Already said in an early or correction sample. */
    boolean told;
  }

  /** A conversion on time that belongs to no impression yet. */
  static final class Waiting {
    String id;
    String named;
    String kind;
    long eventMs;
    long producedMs;
    int partition;
    long offset;
    Double value;
    Payload payload;
  }

  /** An id that had its verdict; a second event with it is a duplicate. */
  record Seen(boolean conversion, String id, long eventMs) {}
}
