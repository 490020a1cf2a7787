package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.stream.Collectors;

/**
 * Validates one event's bytes in one pass and keeps the few fields that the join needs. Features are
 * checked for syntax and skipped: a new feature needs no change here and costs no copy.
 *
 * <p>Not thread-safe: one scanner per reader; its fields hold the last event scanned.
 */
final class EventScanner {
  private static final String[] IMPRESSION_FIELDS = {
    "impression_id", "user_id", "item_id", "event_ms", "domain", "features",
    // the join writes these into the sample, so an impression must not bring its own
    "produced_ms", "labels", "delays_ms", "values", "counts", "keep_rate", "kept", "delayed",
    "state", "elapsed_ms", "revision"
  };
  private static final int ID_CHARS_MAX = 4096; // ids are keys: beside a value they must fit a record
  private static final int IMPRESSION_REQUIRED = 6;
  private static final String[] CONVERSION_FIELDS = {
    "conversion_id", "user_id", "item_id", "event_ms", "kind", "impression_id", "value"
  };
  private static final int CONVERSION_REQUIRED = 5;

  private final boolean conversions;
  private final byte[][] kindNames;
  private final boolean withDomain;
  private final String[] fields;
  private final int required;
  private final JsonCursor cursor = new JsonCursor();
  private final Span text = new Span();

  byte[] id;
  final Span userId = new Span();
  final Span itemId = new Span();
  long eventMs;
  /** Of a conversion the position of its kind in `kindNames`. */
  int kind;

  /** Of an impression, where asked for. */
  byte[] domain;

  byte[] named;
  Double value;

  EventScanner(boolean conversions, byte[][] kindNames, boolean withDomain) {
    this.conversions = conversions;
    this.withDomain = withDomain;
    this.kindNames = kindNames;
    this.fields = conversions ? CONVERSION_FIELDS : IMPRESSION_FIELDS;
    this.required = conversions ? CONVERSION_REQUIRED : IMPRESSION_REQUIRED;
  }

  /** Reads `bytes` into the fields; throws with the reason if it is no event of this stream. */
  void scan(byte[] bytes) throws BadEvent {
    id = null;
    eventMs = -1;
    kind = -1;
    domain = null;
    named = null;
    value = null;
    if (bytes == null) {
      throw new BadEvent("json: expected an object, got no bytes");
    }
    cursor.reset(bytes);
    if (cursor.peek() != '{') {
      throw new BadEvent("json: expected an object, got " + cursor.here());
    }
    cursor.expect('{');
    int seen = 0;
    if (!cursor.consume('}')) {
      do {
        int field = readKey();
        if (field >= 0) {
          if ((seen & 1 << field) != 0) {
            throw new BadEvent(fields[field] + ": expected once, got it twice");
          }
          seen |= 1 << field;
          readField(field);
        } else {
          cursor.skipValue(1);
        }
      } while (cursor.consume(','));
      cursor.expect('}');
    }
    cursor.end();
    for (int field = 0; field < required; field++) {
      if ((seen & 1 << field) == 0) {
        throw new BadEvent(fields[field] + ": expected " + expected(field) + ", got no such field");
      }
    }
  }

  private int readKey() throws BadEvent {
    int start = cursor.skipString();
    int known = -1;
    for (int field = 0; field < fields.length; field++) {
      if (cursor.lastStringIs(start, fields[field])) {
        known = field;
        break;
      }
    }
    cursor.expect(':');
    return known;
  }

  private void readField(int field) throws BadEvent {
    switch (field) {
      case 0 -> id = identifier(field, text).copy();
      case 1 -> identifier(field, userId);
      case 2 -> identifier(field, itemId);
      case 3 -> eventMs = eventTime(field);
      default -> {
        if (conversions) {
          readConversionField(field);
        } else {
          readImpressionField(field);
        }
      }
    }
  }

  private void readImpressionField(int field) throws BadEvent {
    if (field == 4 && cursor.peek() == '"') {
      if (withDomain) {
        cursor.readString(text);
        domain = text.copy();
      } else {
        cursor.skipString();
      }
    } else if (field == 5 && cursor.peek() == '{') {
      cursor.skipValue(1);
    } else {
      throw wrong(field);
    }
  }

  private void readConversionField(int field) throws BadEvent {
    int next = cursor.peek();
    if (field == 4) {
      if (next != '"') {
        throw wrong(field);
      }
      cursor.readString(text);
      kind = knownKind();
    } else if (next == 'n') {
      cursor.skipWord("null");
    } else if (field == 5) {
      named = identifier(field, text).copy();
    } else if (next == '-' || (next >= '0' && next <= '9')) {
      int start = cursor.position();
      cursor.skipNumber();
      value = Double.valueOf(cursor.text(start, cursor.position()));
    } else {
      throw wrong(field);
    }
  }

  private int knownKind() throws BadEvent {
    for (int i = 0; i < kindNames.length; i++) {
      if (text.is(kindNames[i])) {
        return i;
      }
    }
    String kinds =
        Arrays.stream(kindNames).map(EventScanner::text).sorted().collect(Collectors.joining(", "));
    throw new BadEvent("kind: expected one of " + kinds + ", got " + text(text.copy()));
  }

  private static String text(byte[] utf8) {
    return new String(utf8, StandardCharsets.UTF_8);
  }

  private Span identifier(int field, Span into) throws BadEvent {
    if (cursor.peek() != '"') {
      throw wrong(field);
    }
    cursor.readString(into);
    if (into.length() == 0) {
      throw new BadEvent(fields[field] + ": expected " + expected(field) + ", got an empty one");
    }
    if (into.length() > ID_CHARS_MAX && characters(into.copy()) > ID_CHARS_MAX) {
      throw new BadEvent(
          fields[field] + ": expected at most " + ID_CHARS_MAX + " characters, got more");
    }
    return into;
  }

  /** Code points of UTF-8. */
  private static int characters(byte[] text) {
    int count = 0;
    for (byte c : text) {
      count += (c & 0xc0) == 0x80 ? 0 : 1;
    }
    return count;
  }

  private long eventTime(int field) throws BadEvent {
    int next = cursor.peek();
    int start = cursor.position();
    String shown;
    if (next >= '0' && next <= '9' && cursor.skipNumber()) {
      if (cursor.position() - start <= JsonCursor.LONG_DIGITS) {
        return cursor.integer(start);
      }
      shown = cursor.text(start, cursor.position());
      try {
        return Long.parseLong(shown);
      } catch (NumberFormatException tooLarge) {
        // told below
      }
    } else {
      shown = cursor.shown(start);
    }
    throw new BadEvent(fields[field] + ": expected " + expected(field) + ", got " + shown);
  }

  private BadEvent wrong(int field) {
    return new BadEvent(
        fields[field] + ": expected " + expected(field) + ", got " + cursor.here());
  }

  private String expected(int field) {
    return switch (fields[field]) {
      case "event_ms" -> "milliseconds from 0 to 2^63-1 as an integer";
      case "domain", "kind" -> "a string";
      case "features" -> "an object";
      case "value" -> "a finite number or null";
      case "impression_id" -> conversions ? "a non-empty string or null" : "a non-empty string";
      case "conversion_id", "user_id", "item_id" -> "a non-empty string";
      default -> "no field that the join itself writes";
    };
  }
}
