package dev.headwater.join;

import java.util.Arrays;

/** A part of an array, as the scanner finds a text: nothing is copied before it is known what for. */
final class Span {
  byte[] bytes = new byte[0];
  int from;
  int to;

  static Span of(byte[] whole) {
    Span span = new Span();
    span.set(whole, 0, whole.length);
    return span;
  }

  void set(byte[] in, int first, int end) {
    bytes = in;
    from = first;
    to = end;
  }

  int length() {
    return to - from;
  }

  boolean is(byte[] text) {
    return Arrays.equals(bytes, from, to, text, 0, text.length);
  }

  byte[] copy() {
    return Arrays.copyOfRange(bytes, from, to);
  }
}
