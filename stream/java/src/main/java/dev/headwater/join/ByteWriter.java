package dev.headwater.join;

import java.util.Arrays;

/** Bytes to the end of a growing buffer, which is used again for the next content. */
final class ByteWriter {
  private static final long HUNDRED_MILLION = 100_000_000;
  private static final byte[] TENS = new byte[100];
  private static final byte[] UNITS = new byte[100];

  static {
    for (int i = 0; i < 100; i++) {
      TENS[i] = (byte) ('0' + i / 10);
      UNITS[i] = (byte) ('0' + i % 10);
    }
  }

  private byte[] buffer = new byte[512];
  private int at;

  ByteWriter reset() {
    at = 0;
    return this;
  }

  /** A fresh array; the heap state backend keeps it, so it is never written again. */
  byte[] toBytes() {
    return Arrays.copyOf(buffer, at);
  }

  int length() {
    return at;
  }

  /** Takes out what was written from position `from` on. */
  byte[] cut(int from) {
    byte[] end = Arrays.copyOfRange(buffer, from, at);
    at = from;
    return end;
  }

  ByteWriter raw(byte[] content, int from, int length) {
    room(length);
    System.arraycopy(content, from, buffer, at, length);
    at += length;
    return this;
  }

  ByteWriter raw(byte[] content) {
    return raw(content, 0, content.length);
  }

  ByteWriter octet(int value) {
    room(1);
    buffer[at++] = (byte) value;
    return this;
  }

  ByteWriter flag(boolean value) {
    return octet(value ? 1 : 0);
  }

  /** Seven bits a byte, lowest first; a negative number takes ten bytes. */
  ByteWriter varint(long value) {
    room(10);
    long rest = value;
    while ((rest & ~0x7fL) != 0) {
      buffer[at++] = (byte) (rest | 0x80);
      rest >>>= 7;
    }
    buffer[at++] = (byte) rest;
    return this;
  }

  /** What was written, behind its length, to the end of `other`. */
  void appendSized(ByteWriter other) {
    other.varint(at).raw(buffer, 0, at);
  }

  ByteWriter sized(byte[] content) {
    return varint(content.length).raw(content);
  }

  /** Decimal digits. */
  ByteWriter decimal(long value) {
    if (value < 0) {
      return ascii(Long.toString(value));
    }
    room(20);
    int digits = digits(value);
    int end = at + digits;
    long rest = value;
    while (rest >= HUNDRED_MILLION) { // eight digits at once: divisions of long are slow
      long head = rest / HUNDRED_MILLION;
      int eight = (int) (rest - head * HUNDRED_MILLION);
      for (int i = 0; i < 4; i++) {
        int tail = eight / 100;
        end = twoDigits(eight - tail * 100, end);
        eight = tail;
      }
      rest = head;
    }
    int left = (int) rest;
    while (left >= 10) {
      int tail = left / 100;
      if (end - at == 1) {
        break;
      }
      end = twoDigits(left - tail * 100, end);
      left = tail;
    }
    if (end > at) {
      buffer[at] = (byte) ('0' + left);
    }
    at += digits;
    return this;
  }

  private int twoDigits(int value, int end) {
    buffer[end - 1] = UNITS[value];
    buffer[end - 2] = TENS[value];
    return end - 2;
  }

  private static int digits(long value) {
    int digits = 1;
    for (long power = 10; digits < 19 && value >= power; power *= 10) {
      digits++;
    }
    return digits;
  }

  ByteWriter ascii(String text) {
    int length = text.length();
    room(length);
    for (int i = 0; i < length; i++) {
      buffer[at++] = (byte) text.charAt(i);
    }
    return this;
  }

  /** A JSON string of UTF-8 `text`. */
  ByteWriter quoted(byte[] text) {
    room(text.length * 6 + 2);
    buffer[at++] = '"';
    for (byte c : text) {
      if (c == '"' || c == '\\') {
        buffer[at++] = '\\';
        buffer[at++] = c;
      } else if (c >= 0 && c < 0x20) {
        ascii(String.format("\\u%04x", (int) c));
      } else {
        buffer[at++] = c;
      }
    }
    buffer[at++] = '"';
    return this;
  }

  /** `head` (its `headLength` bytes from `from`) and what was written, as one fresh array. */
  byte[] after(byte[] head, int from, int headLength) {
    byte[] whole = new byte[headLength + at];
    System.arraycopy(head, from, whole, 0, headLength);
    System.arraycopy(buffer, 0, whole, headLength, at);
    return whole;
  }

  private void room(int wanted) {
    if (at + wanted > buffer.length) {
      buffer = Arrays.copyOf(buffer, Math.max(buffer.length * 2, at + wanted));
    }
  }
}
