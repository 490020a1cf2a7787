package dev.headwater.join;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

/**
 * Pairs as entries of a page, and back: small numbers take one byte, payloads are not copied when read.
 *
 * <p>An entry is its length, a layout version, a tag and the pair's key, so that a page tells by itself
 * what is in it. A layout that this build does not know is refused.
 */
final class PairCodec {
  /** 1, 2: a value of Flink's state per pair, under Flink's timers. */
  static final int VERSION = 3;

  private static final int PAIR = 'p';
  private static final int PAYLOAD = 'b';
  private static final int INLINE_BYTES_MAX = 4096;
  private static final int INLINE_PAYLOADS_MAX = 4;

  /** One entry of a page: a pair with what it has due, or a payload of one. */
  record Entry(int at, boolean isPair, PairKey key, long dueMs) {}

  private final List<Kind> kinds;
  private final ByteWriter entry = new ByteWriter();
  private byte[] in = {};
  private int at;
  private Map<Long, Page> pages = Map.of();

  PairCodec(List<Kind> kinds) {
    this.kinds = kinds;
  }

  /** What is in a page, in order. */
  List<Entry> entries(byte[] page) {
    List<Entry> found = new ArrayList<>();
    in = page;
    at = 0;
    while (at < page.length) {
      int start = at;
      int end = (int) varint() + at;
      boolean isPair = tag() == PAIR;
      PairKey key = key();
      found.add(new Entry(start, isPair, key, isPair ? varint() : PairState.NO_TIMER));
      at = end;
    }
    return found;
  }

  /**
   * Large payloads, and all but a pair's first few, get entries of their own, once: they are not
   * written again at each change of the pair.
   */
  void writePayloads(ByteWriter out, PairState state, Page page) {
    int position = 0;
    for (PairState.Impression each = state.open; each != null; each = each.next) {
      writeApart(out, state.key, each, page, position++);
    }
    for (PairState.Waiting each = state.waiting; each != null; each = each.next) {
      writeApart(out, state.key, each, page, position++);
    }
  }

  private void writeApart(
      ByteWriter out, PairKey key, PairState.Held<?> event, Page page, int position) {
    boolean small = position < INLINE_PAYLOADS_MAX && event.length <= INLINE_BYTES_MAX;
    if (event.isApart() || small) {
      return;
    }
    event.place = page.add(out.length());
    begin(PAYLOAD, key).varint(event.length).raw(event.bytes, event.from, event.length);
    entry.appendSized(out);
  }

  /** Writes the pair; its payloads that lie apart must have been. */
  void write(ByteWriter out, PairState state, long dueMs) {
    begin(PAIR, state.key).varint(dueMs).varint(PairState.Linked.count(state.open));
    for (PairState.Impression each = state.open; each != null; each = each.next) {
      write(each);
      entry.varint(PairState.Linked.count(each.labels));
      for (PairState.Label label = each.labels; label != null; label = label.next) {
        write(label);
      }
    }
    entry.varint(PairState.Linked.count(state.waiting));
    for (PairState.Waiting each = state.waiting; each != null; each = each.next) {
      write(each);
    }
    entry.varint(PairState.Linked.count(state.seen));
    for (PairState.Seen each = state.seen; each != null; each = each.next) {
      write(each);
    }
    entry.appendSized(out);
  }

  private ByteWriter begin(int tag, PairKey key) {
    return entry.reset().varint(VERSION).octet(tag).varint(key.userLength).sized(key.bytes);
  }

  /** Fills the pair from `place` of a page; `known` are the pages that its payloads may lie in. */
  void decode(PairState state, byte[] page, int place, Map<Long, Page> known) {
    enter(page, place, PAIR);
    pages = known;
    varint(); // what is due
    for (long left = varint(); left > 0; left--) {
      PairState.Impression impression = impression();
      state.add(impression);
      for (long labels = varint(); labels > 0; labels--) {
        impression.add(label());
      }
    }
    for (long left = varint(); left > 0; left--) {
      state.add(waiting());
    }
    for (long left = varint(); left > 0; left--) {
      state.add(seen());
    }
  }

  /** The payload whose entry is at `place` of a page. */
  Span payloadAt(byte[] page, int place) {
    enter(page, place, PAYLOAD);
    int length = (int) varint();
    Span payload = new Span();
    payload.set(page, at, at + length);
    return payload;
  }

  private void enter(byte[] page, int place, int wanted) {
    in = page;
    at = place;
    varint();
    int found = tag();
    if (found != wanted) {
      throw new IllegalStateException("join state: expected entry " + wanted + ", got " + found);
    }
    varint();
    int keyLength = (int) varint();
    at += keyLength;
  }

  private int tag() {
    long version = varint();
    if (version != VERSION) {
      throw new JoinStateVersion(version);
    }
    return in[at++];
  }

  private PairKey key() {
    int userLength = (int) varint();
    return new PairKey(sized(), userLength);
  }

  private void write(PairState.Impression impression) {
    entry.sized(impression.id).varint(impression.eventMs).varint(impression.producedMs);
    entry.varint(impression.partition).varint(impression.offset);
    writePayload(impression);
    boolean sampled = impression.keepRate != 1.0;
    entry.octet(
        (impression.earlyDone ? 1 : 0) | (impression.kept ? 2 : 0) | (sampled ? 4 : 0));
    if (sampled) {
      entry.varint(Double.doubleToRawLongBits(impression.keepRate));
    }
  }

  private PairState.Impression impression() {
    PairState.Impression impression = new PairState.Impression();
    impression.id = sized();
    impression.eventMs = varint();
    impression.producedMs = varint();
    impression.partition = (int) varint();
    impression.offset = varint();
    readPayload(impression);
    int flags = in[at++];
    impression.earlyDone = (flags & 1) != 0;
    impression.kept = (flags & 2) != 0;
    impression.keepRate = (flags & 4) != 0 ? Double.longBitsToDouble(varint()) : 1.0;
    return impression;
  }

  private void write(PairState.Label label) {
    entry.sized(label.kind.name).sized(label.id).varint(label.eventMs).varint(label.producedMs);
    write(label.value);
    entry.octet((label.early ? 1 : 0) | (label.corrected ? 2 : 0));
  }

  private PairState.Label label() {
    PairState.Label label = new PairState.Label();
    label.kind = kind();
    label.id = sized();
    label.eventMs = varint();
    label.producedMs = varint();
    label.value = value();
    int flags = in[at++];
    label.early = (flags & 1) != 0;
    label.corrected = (flags & 2) != 0;
    return label;
  }

  private void write(PairState.Waiting waiting) {
    entry.sized(waiting.id).flag(waiting.named != null);
    if (waiting.named != null) {
      entry.sized(waiting.named);
    }
    entry.sized(waiting.kind.name).varint(waiting.eventMs).varint(waiting.producedMs);
    entry.varint(waiting.partition).varint(waiting.offset);
    write(waiting.value);
    writePayload(waiting);
  }

  private PairState.Waiting waiting() {
    PairState.Waiting waiting = new PairState.Waiting();
    waiting.id = sized();
    waiting.named = flag() ? sized() : null;
    waiting.kind = kind();
    waiting.eventMs = varint();
    waiting.producedMs = varint();
    waiting.partition = (int) varint();
    waiting.offset = varint();
    waiting.value = value();
    readPayload(waiting);
    return waiting;
  }

  private void write(PairState.Seen seen) {
    entry.flag(seen.conversion).sized(seen.id).varint(seen.eventMs);
  }

  private PairState.Seen seen() {
    return new PairState.Seen(flag(), sized(), varint());
  }

  private void writePayload(PairState.Held<?> event) {
    entry.flag(event.isApart());
    if (event.isApart()) {
      Page.Place place = event.place;
      entry.varint(place.page().number).varint(place.at()).varint(place.index());
    } else {
      entry.varint(event.length).raw(event.bytes, event.from, event.length);
    }
  }

  private void readPayload(PairState.Held<?> event) {
    if (flag()) {
      Page page = pages.get(varint());
      int place = (int) varint();
      event.place = new Page.Place(page, place, (int) varint());
      return;
    }
    int length = (int) varint();
    event.hold(in, at, length);
    at += length;
  }

  private void write(Double value) {
    entry.flag(value != null);
    if (value != null) {
      entry.varint(Double.doubleToRawLongBits(value));
    }
  }

  private Double value() {
    return flag() ? Double.valueOf(Double.longBitsToDouble(varint())) : null;
  }

  private Kind kind() {
    int length = (int) varint();
    at += length;
    return Kind.of(kinds, in, at - length, at);
  }

  private byte[] sized() {
    int length = (int) varint();
    at += length;
    return Arrays.copyOfRange(in, at - length, at);
  }

  private boolean flag() {
    return in[at++] != 0;
  }

  private long varint() {
    long value = 0;
    for (int shift = 0; ; shift += 7) {
      byte next = in[at++];
      value |= (next & 0x7fL) << shift;
      if (next >= 0) {
        return value;
      }
    }
  }
}
