package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * {@link PairState} to bytes and back: small numbers take one byte, times are written as they are.
 * The first byte is the layout version; a layout this build does not know is refused.
 */
final class PairCodec {
  private static final int VERSION = 1;

  private byte[] buffer = new byte[512];
  private int at;

  /** A fresh array; the heap state backend keeps it, so it is never written again. */
  byte[] encode(PairState state) {
    at = 0;
    number(VERSION);
    string(state.userId);
    string(state.itemId);
    number(state.timerMs);
    number(state.payloadNext);
    number(state.open.size());
    for (PairState.Impression impression : state.open) {
      encode(impression);
    }
    number(state.waiting.size());
    for (PairState.Waiting waiting : state.waiting) {
      encode(waiting);
    }
    number(state.seen.size());
    for (PairState.Seen seen : state.seen) {
      flag(seen.conversion());
      string(seen.id());
      number(seen.eventMs());
    }
    return Arrays.copyOf(buffer, at);
  }

  PairState decode(byte[] bytes) {
    PairState state = new PairState();
    if (bytes == null) {
      return state;
    }
    buffer = bytes.length > buffer.length ? new byte[bytes.length * 2] : buffer;
    System.arraycopy(bytes, 0, buffer, 0, bytes.length);
    at = 0;
    long version = number();
    if (version != VERSION) {
      throw new IllegalStateException(
          "join state: expected layout " + VERSION + ", got " + version
              + "; restore it with the release that wrote it, or replay from the topics");
    }
    state.userId = string();
    state.itemId = string();
    state.timerMs = number();
    state.payloadNext = number();
    for (long left = number(); left > 0; left--) {
      state.open.add(impression());
    }
    for (long left = number(); left > 0; left--) {
      state.waiting.add(waiting());
    }
    for (long left = number(); left > 0; left--) {
      state.seen.add(new PairState.Seen(flag(), string(), number()));
    }
    return state;
  }

  private void encode(PairState.Impression impression) {
    string(impression.id);
    number(impression.eventMs);
    number(impression.producedMs);
    number(impression.partition);
    number(impression.offset);
    payload(impression.payload);
    flag(impression.earlyDone);
    number(impression.revisions);
    number(impression.newestEventMs);
    number(impression.newestProducedMs);
    number(impression.labels.size());
    for (PairState.Label label : impression.labels) {
      string(label.kind);
      string(label.conversionId);
      number(label.eventMs);
      number(label.producedMs);
      value(label.value);
      flag(label.told);
    }
  }

  private PairState.Impression impression() {
    PairState.Impression impression = new PairState.Impression();
    impression.id = string();
    impression.eventMs = number();
    impression.producedMs = number();
    impression.partition = (int) number();
    impression.offset = number();
    impression.payload = payload();
    impression.earlyDone = flag();
    impression.revisions = (int) number();
    impression.newestEventMs = number();
    impression.newestProducedMs = number();
    for (long left = number(); left > 0; left--) {
      PairState.Label label = new PairState.Label();
      label.kind = string();
      label.conversionId = string();
      label.eventMs = number();
      label.producedMs = number();
      label.value = value();
      label.told = flag();
      impression.labels.add(label);
    }
    return impression;
  }

  private void encode(PairState.Waiting waiting) {
    string(waiting.id);
    flag(waiting.named != null);
    if (waiting.named != null) {
      string(waiting.named);
    }
    string(waiting.kind);
    number(waiting.eventMs);
    number(waiting.producedMs);
    number(waiting.partition);
    number(waiting.offset);
    value(waiting.value);
    payload(waiting.payload);
  }

  private PairState.Waiting waiting() {
    PairState.Waiting waiting = new PairState.Waiting();
    waiting.id = string();
    waiting.named = flag() ? string() : null;
    waiting.kind = string();
    waiting.eventMs = number();
    waiting.producedMs = number();
    waiting.partition = (int) number();
    waiting.offset = number();
    waiting.value = value();
    waiting.payload = payload();
    return waiting;
  }

  private void payload(PairState.Payload payload) {
    flag(payload.inline() != null);
    if (payload.inline() != null) {
      bytes(payload.inline());
    } else {
      number(payload.number());
    }
  }

  private PairState.Payload payload() {
    return flag() ? new PairState.Payload(bytes(), 0) : new PairState.Payload(null, number());
  }

  private void value(Double value) {
    flag(value != null);
    if (value != null) {
      number(Double.doubleToRawLongBits(value));
    }
  }

  private Double value() {
    return flag() ? Double.valueOf(Double.longBitsToDouble(number())) : null;
  }

  private void string(String text) {
    bytes(text.getBytes(StandardCharsets.UTF_8));
  }

  private String string() {
    int length = (int) number();
    String text = new String(buffer, at, length, StandardCharsets.UTF_8);
    at += length;
    return text;
  }

  private void bytes(byte[] content) {
    number(content.length);
    room(content.length);
    System.arraycopy(content, 0, buffer, at, content.length);
    at += content.length;
  }

  private byte[] bytes() {
    int length = (int) number();
    byte[] content = Arrays.copyOfRange(buffer, at, at + length);
    at += length;
    return content;
  }

  private void flag(boolean value) {
    room(1);
    buffer[at++] = (byte) (value ? 1 : 0);
  }

  private boolean flag() {
    return buffer[at++] != 0;
  }

  /** Seven bits a byte, lowest first; a negative number takes ten bytes. */
  private void number(long value) {
    room(10);
    long rest = value;
    while ((rest & ~0x7fL) != 0) {
      buffer[at++] = (byte) (rest | 0x80);
      rest >>>= 7;
    }
    buffer[at++] = (byte) rest;
  }

  private long number() {
    long value = 0;
    for (int shift = 0; ; shift += 7) {
      byte next = buffer[at++];
      value |= (next & 0x7fL) << shift;
      if (next >= 0) {
        return value;
      }
    }
  }

  private void room(int wanted) {
    if (at + wanted > buffer.length) {
      buffer = Arrays.copyOf(buffer, Math.max(buffer.length * 2, at + wanted));
    }
  }
}
