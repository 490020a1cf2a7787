package dev.headwater.join;

import java.util.Arrays;
import java.util.List;
import java.util.Map;

/**
 * {@link PairState} to bytes and back: small numbers take one byte, payloads are not copied when read.
 * The first byte is the layout version; a layout this build does not know is refused.
 *
 * <p>A pair of few parts is one value, `pair`. Of a spread pair `pair` holds the header only, and each
 * entry is a value of its own, with a tag that says what it is.
 */
final class PairCodec {
  /** 1: no counts, no kept negatives, payloads apart only. */
  static final int VERSION = 2;

  private static final int IMPRESSION = 'i';
  private static final int LABEL = 'l';
  private static final int WAITING = 'w';
  private static final int SEEN = 's';

  private final List<Kind> kinds;
  private final ByteWriter out = new ByteWriter();
  private byte[] in = {};
  private int at;

  PairCodec(List<Kind> kinds) {
    this.kinds = kinds;
  }

  /** The pair's own value. */
  byte[] encode(PairState state) {
    out.reset().varint(VERSION).flag(state.spread).sized(state.userId).sized(state.itemId);
    out.varint(state.timerMs).varint(state.numberNext);
    if (state.spread) {
      return out.toBytes();
    }
    out.varint(state.open.size());
    for (PairState.Impression impression : state.open) {
      write(impression);
      out.varint(impression.labels.size());
      impression.labels.forEach(this::write);
    }
    out.varint(state.waiting.size());
    state.waiting.forEach(this::write);
    out.varint(state.seen.size());
    state.seen.forEach(this::write);
    return out.toBytes();
  }

  /** The pair, or of a spread pair its header. */
  PairState decode(byte[] bytes) {
    PairState state = new PairState();
    if (bytes == null) {
      return state;
    }
    in = bytes;
    at = 0;
    long version = varint();
    if (version != VERSION) {
      throw new JoinStateVersion(version);
    }
    state.spread = flag();
    state.userId = sized();
    state.itemId = sized();
    state.timerMs = varint();
    state.numberNext = varint();
    if (state.spread) {
      return state;
    }
    for (long left = varint(); left > 0; left--) {
      PairState.Impression impression = impression();
      state.open.add(impression);
      for (long labels = varint(); labels > 0; labels--) {
        impression.labels.add(label());
      }
    }
    for (long left = varint(); left > 0; left--) {
      state.waiting.add(waiting());
    }
    for (long left = varint(); left > 0; left--) {
      state.seen.add(seen());
    }
    return state;
  }

  byte[] entry(PairState.Impression impression) {
    out.reset().octet(IMPRESSION);
    write(impression);
    return out.toBytes();
  }

  byte[] entry(PairState.Label label, long owner) {
    out.reset().octet(LABEL).varint(owner);
    write(label);
    return out.toBytes();
  }

  byte[] entry(PairState.Waiting waiting) {
    out.reset().octet(WAITING);
    write(waiting);
    return out.toBytes();
  }

  byte[] entry(PairState.Seen seen) {
    out.reset().octet(SEEN);
    write(seen);
    return out.toBytes();
  }

  /** Whether `bytes` are a label, which needs its impression to be there before it. */
  static boolean isLabel(byte[] bytes) {
    return bytes[0] == LABEL;
  }

  /** Adds a stored entry, which is no label, to the state. */
  void decodeEntry(PairState state, long number, byte[] bytes) {
    in = bytes;
    at = 1;
    PairState.Entry entry;
    switch (bytes[0]) {
      case IMPRESSION -> state.open.add((PairState.Impression) (entry = impression()));
      case WAITING -> state.waiting.add((PairState.Waiting) (entry = waiting()));
      case SEEN -> state.seen.add((PairState.Seen) (entry = seen()));
      default -> throw new IllegalStateException("join state: unknown entry tag " + bytes[0]);
    }
    entry.number = number;
    entry.dirty = false;
  }

  /** Adds a stored label to its impression. */
  void decodeLabel(Map<Long, PairState.Impression> impressions, long number, byte[] bytes) {
    in = bytes;
    at = 1;
    PairState.Impression owner = impressions.get(varint());
    PairState.Label label = label();
    label.number = number;
    label.dirty = false;
    owner.labels.add(label);
  }

  private void write(PairState.Impression impression) {
    out.sized(impression.id).varint(impression.eventMs).varint(impression.producedMs);
    out.varint(impression.partition).varint(impression.offset);
    write(impression.payload);
    boolean sampled = impression.keepRate != 1.0;
    out.octet(
        (impression.earlyDone ? 1 : 0) | (impression.kept ? 2 : 0) | (sampled ? 4 : 0));
    if (sampled) {
      out.varint(Double.doubleToRawLongBits(impression.keepRate));
    }
  }

  private PairState.Impression impression() {
    PairState.Impression impression = new PairState.Impression();
    impression.id = sized();
    impression.eventMs = varint();
    impression.producedMs = varint();
    impression.partition = (int) varint();
    impression.offset = varint();
    impression.payload = payload();
    int flags = in[at++];
    impression.earlyDone = (flags & 1) != 0;
    impression.kept = (flags & 2) != 0;
    impression.keepRate = (flags & 4) != 0 ? Double.longBitsToDouble(varint()) : 1.0;
    return impression;
  }

  private void write(PairState.Label label) {
    out.sized(label.kind.name).sized(label.id).varint(label.eventMs).varint(label.producedMs);
    write(label.value);
    out.octet((label.early ? 1 : 0) | (label.corrected ? 2 : 0));
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
    out.sized(waiting.id).flag(waiting.named != null);
    if (waiting.named != null) {
      out.sized(waiting.named);
    }
    out.sized(waiting.kind.name).varint(waiting.eventMs).varint(waiting.producedMs);
    out.varint(waiting.partition).varint(waiting.offset);
    write(waiting.value);
    write(waiting.payload);
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
    waiting.payload = payload();
    return waiting;
  }

  private void write(PairState.Seen seen) {
    out.flag(seen.conversion).sized(seen.id).varint(seen.eventMs);
  }

  private PairState.Seen seen() {
    return new PairState.Seen(flag(), sized(), varint());
  }

  private void write(PairState.Payload payload) {
    out.flag(payload.inline());
    if (payload.inline()) {
      out.varint(payload.length()).raw(payload.bytes(), payload.from(), payload.length());
    } else {
      out.varint(payload.number());
    }
  }

  private PairState.Payload payload() {
    if (!flag()) {
      return new PairState.Payload(null, 0, 0, varint());
    }
    int length = (int) varint();
    at += length;
    return new PairState.Payload(in, at - length, length, 0);
  }

  private void write(Double value) {
    out.flag(value != null);
    if (value != null) {
      out.varint(Double.doubleToRawLongBits(value));
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
