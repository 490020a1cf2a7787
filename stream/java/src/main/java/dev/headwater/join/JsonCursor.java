package dev.headwater.join;

import java.nio.charset.StandardCharsets;

/**
 * Walks the bytes of one JSON text strictly: RFC 8259 grammar, valid UTF-8, paired surrogates, finite
 * numbers. It copies nothing unless asked to, so a payload of thousands of features costs one pass.
 */
final class JsonCursor {
  /** So many digits fit a long whatever they are. */
  static final int LONG_DIGITS = 18;

  private static final int DEPTH_MAX = 100;
  private static final int SHOWN_CHARS_MAX = 40;

  private byte[] bytes = new byte[0];
  private int at;
  private boolean escaped; // the string read last holds a backslash

  void reset(byte[] text) {
    bytes = text;
    at = 0;
  }

  int position() {
    return at;
  }

  /**
   * The next byte that is not white space, or -1 at the end; does not consume it. The byte 0xff is -1
   * as well, which no JSON begins with: only {@link #end} has to tell them apart.
   */
  int peek() {
    if (at < bytes.length && bytes[at] > ' ') {
      return bytes[at];
    }
    while (at < bytes.length) {
      int c = bytes[at];
      if (c != ' ' && c != '\n' && c != '\r' && c != '\t') {
        return c;
      }
      at++;
    }
    return -1;
  }

  void expect(char wanted) throws BadEvent {
    if (peek() != wanted) {
      throw new BadEvent("json: expected '" + wanted + "', got " + here());
    }
    at++;
  }

  boolean consume(char wanted) {
    if (peek() == wanted) {
      at++;
      return true;
    }
    return false;
  }

  void end() throws BadEvent {
    if (peek() != -1 || at < bytes.length) {
      throw new BadEvent("json: expected nothing after the object, got " + here());
    }
  }

  /** Consumes a string; returns the index of its first content byte, content ends at position()-1. */
  int skipString() throws BadEvent {
    expect('"');
    escaped = false;
    int start = at;
    while (true) {
      at = plain(bytes, at);
      if (at == bytes.length) {
        break;
      }
      int c = bytes[at];
      if (c == '"') {
        at++;
        return start;
      }
      if (c == '\\') {
        escaped = true;
        skipEscape();
      } else if (c >= 0) {
        throw new BadEvent("json: expected no control character in a string, got " + here());
      } else {
        skipUtf8();
      }
    }
    throw new BadEvent("json: expected '\"', got the end of the bytes");
  }

  /** The first position from `from` that is not a plain ASCII character of a string. */
  private static int plain(byte[] text, int from) {
    for (int i = from; i < text.length; i++) {
      int c = text[i];
      if (c < 0x20 || c == '"' || c == '\\') {
        return i;
      }
    }
    return text.length;
  }

  /** Consumes a string; `text` is its text in UTF-8, within these bytes where nothing is escaped. */
  void readString(Span text) throws BadEvent {
    int start = skipString();
    if (escaped) {
      byte[] plain = unescape(text(start, at - 1)).getBytes(StandardCharsets.UTF_8);
      text.set(plain, 0, plain.length);
    } else {
      text.set(bytes, start, at - 1);
    }
  }

  /** Whether the string read last (content from `start`) is exactly the ASCII `name`. */
  boolean lastStringIs(int start, String name) {
    int length = at - 1 - start;
    if (escaped) {
      return unescape(new String(bytes, start, length, StandardCharsets.UTF_8)).equals(name);
    }
    if (length != name.length()) {
      return false;
    }
    for (int i = 0; i < length; i++) {
      if (bytes[start + i] != name.charAt(i)) {
        return false;
      }
    }
    return true;
  }

  /** Consumes any value, checking its syntax only. */
  void skipValue(int depth) throws BadEvent {
    switch (peek()) {
      case '"' -> skipString();
      case '{' -> skipObject(depth);
      case '[' -> skipArray(depth);
      case 't' -> skipWord("true");
      case 'f' -> skipWord("false");
      case 'n' -> skipWord("null");
      default -> skipNumber();
    }
  }

  /** Consumes a number and returns whether it is written as an integer. */
  boolean skipNumber() throws BadEvent {
    int first = peek();
    int start = at;
    if (first == '-') {
      at++;
    }
    int digits = skipDigits();
    if (digits == 0 || (digits > 1 && bytes[at - digits] == '0')) {
      at = start;
      throw new BadEvent("json: expected a value, got " + here());
    }
    boolean integer = true;
    boolean large = digits > 300;
    if (at < bytes.length && bytes[at] == '.') {
      integer = false;
      at++;
      requireDigits();
    }
    if (at < bytes.length && (bytes[at] == 'e' || bytes[at] == 'E')) {
      integer = false;
      large = true;
      at++;
      if (at < bytes.length && (bytes[at] == '+' || bytes[at] == '-')) {
        at++;
      }
      requireDigits();
    }
    if (large && Double.isInfinite(Double.parseDouble(text(start, at)))) {
      throw new BadEvent("json: expected a finite number, got " + text(start, at));
    }
    return integer;
  }

  void skipWord(String word) throws BadEvent {
    peek();
    for (int i = 0; i < word.length(); i++) {
      if (at + i >= bytes.length || bytes[at + i] != word.charAt(i)) {
        throw new BadEvent("json: expected a value, got " + here());
      }
    }
    at += word.length();
  }

  String text(int from, int to) {
    return new String(bytes, from, to - from, StandardCharsets.UTF_8);
  }

  /** The non-negative integer of at most {@link #LONG_DIGITS} digits from `start` to the cursor. */
  long integer(int start) {
    long value = 0;
    for (int i = start; i < at; i++) {
      value = value * 10 + (bytes[i] - '0');
    }
    return value;
  }

  /** What stands at the cursor, short and printable, for a reason text. */
  String here() {
    return shown(at);
  }

  /** Likewise, what stands at `from`. */
  String shown(int from) {
    if (from >= bytes.length) {
      return "the end of the bytes";
    }
    int to = Math.min(bytes.length, from + SHOWN_CHARS_MAX);
    StringBuilder shown = new StringBuilder();
    for (int i = from; i < to; i++) {
      int c = bytes[i] & 0xff;
      if (c >= 0x20 && c < 0x7f) {
        shown.append((char) c);
      } else {
        shown.append(String.format("\\x%02x", c));
      }
    }
    return shown.append(to < bytes.length ? "..." : "").toString();
  }

  private void skipObject(int depth) throws BadEvent {
    deeper(depth);
    expect('{');
    if (consume('}')) {
      return;
    }
    do {
      skipString();
      expect(':');
      skipValue(depth + 1);
    } while (consume(','));
    expect('}');
  }

  private void skipArray(int depth) throws BadEvent {
    deeper(depth);
    expect('[');
    if (consume(']')) {
      return;
    }
    do {
      skipValue(depth + 1);
    } while (consume(','));
    expect(']');
  }

  private static void deeper(int depth) throws BadEvent {
    if (depth >= DEPTH_MAX) {
      throw new BadEvent("json: expected at most " + DEPTH_MAX + " levels of nesting, got more");
    }
  }

  private int skipDigits() {
    byte[] text = bytes; // and `to`: the compiler keeps no field in a register
    int start = at;
    int to = start;
    while (to < text.length && text[to] >= '0' && text[to] <= '9') {
      to++;
    }
    at = to;
    return to - start;
  }

  private void requireDigits() throws BadEvent {
    if (skipDigits() == 0) {
      throw new BadEvent("json: expected a digit, got " + here());
    }
  }

  private void skipEscape() throws BadEvent {
    int c = at + 1 < bytes.length ? bytes[at + 1] : -1;
    if (c == 'u') {
      int unit = hex(at + 2);
      if (Character.isLowSurrogate((char) unit)) {
        throw new BadEvent("json: expected paired surrogates, got " + here());
      }
      if (Character.isHighSurrogate((char) unit)) {
        boolean paired =
            at + 7 < bytes.length
                && bytes[at + 6] == '\\'
                && bytes[at + 7] == 'u'
                && Character.isLowSurrogate((char) hex(at + 8));
        if (!paired) {
          throw new BadEvent("json: expected paired surrogates, got " + here());
        }
        at += 6;
      }
      at += 6;
    } else if (c == '"' || c == '\\' || c == '/' || c == 'b' || c == 'f' || c == 'n' || c == 'r'
        || c == 't') {
      at += 2;
    } else {
      throw new BadEvent("json: expected an escape sequence, got " + here());
    }
  }

  private int hex(int from) throws BadEvent {
    int unit = 0;
    for (int i = from; i < from + 4; i++) {
      int digit = i < bytes.length ? Character.digit((char) (bytes[i] & 0xff), 16) : -1;
      if (digit < 0 || bytes[i] < 0) {
        throw new BadEvent("json: expected four hexadecimal digits, got " + here());
      }
      unit = unit * 16 + digit;
    }
    return unit;
  }

  private void skipUtf8() throws BadEvent {
    int lead = bytes[at] & 0xff;
    int follow;
    int low = 0x80;
    int high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) {
      follow = 1;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      follow = 2;
      low = lead == 0xe0 ? 0xa0 : low; // no overlong forms
      high = lead == 0xed ? 0x9f : high; // no surrogates
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      follow = 3;
      low = lead == 0xf0 ? 0x90 : low;
      high = lead == 0xf4 ? 0x8f : high;
    } else {
      throw new BadEvent("json: expected utf-8, got " + here());
    }
    for (int i = 1; i <= follow; i++) {
      int c = at + i < bytes.length ? bytes[at + i] & 0xff : -1;
      if (c < low || c > high) {
        throw new BadEvent("json: expected utf-8, got " + here());
      }
      low = 0x80;
      high = 0xbf;
    }
    at += follow + 1;
  }

  /** The text of a string whose escapes `skipEscape` has already checked. */
  private static String unescape(String raw) {
    StringBuilder out = new StringBuilder(raw.length());
    for (int i = 0; i < raw.length(); i++) {
      char c = raw.charAt(i);
      if (c != '\\') {
        out.append(c);
        continue;
      }
      char kind = raw.charAt(++i);
      switch (kind) {
        case 'b' -> out.append('\b');
        case 'f' -> out.append('\f');
        case 'n' -> out.append('\n');
        case 'r' -> out.append('\r');
        case 't' -> out.append('\t');
        case 'u' -> {
          out.append((char) Integer.parseInt(raw.substring(i + 1, i + 5), 16));
          i += 4;
        }
        default -> out.append(kind);
      }
    }
    return out.toString();
  }
}
