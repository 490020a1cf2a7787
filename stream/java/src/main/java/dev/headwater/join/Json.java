package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.Collection;
import java.util.List;

/** The JSON that the join writes: attributions, and samples spliced onto the impression's bytes. */
final class Json {
  private Json() {}

  static byte[] attribution(String conversionId, String impressionId, String kind) {
    StringBuilder out = new StringBuilder(96).append("{\"conversion_id\":");
    quote(out, conversionId).append(",\"impression_id\":");
    quote(out, impressionId).append(",\"kind\":");
    return quote(out, kind).append('}').toString().getBytes(StandardCharsets.UTF_8);
  }

  /**
   * The impression's object, its own fields untouched, with the sample's fields at its end. `kinds`
   * are the labels to write; those in `positive` are 1.
   */
  static byte[] sample(
      PairState.Impression impression,
      byte[] payload,
      Collection<String> kinds,
      List<PairState.Label> positive,
      String state,
      long elapsedMs,
      long producedMs) {
    StringBuilder tail = new StringBuilder(200).append(",\"produced_ms\":").append(producedMs);
    StringBuilder delays = new StringBuilder();
    StringBuilder values = new StringBuilder();
    tail.append(",\"labels\":{");
    String comma = "";
    for (String kind : kinds) {
      PairState.Label label = find(positive, kind);
      quote(tail.append(comma), kind).append(':').append(label == null ? '0' : '1');
      comma = ",";
      if (label != null) {
        quote(delays.append(delays.isEmpty() ? "" : ","), kind)
            .append(':')
            .append(label.eventMs - impression.eventMs);
        if (label.value != null) {
          quote(values.append(values.isEmpty() ? "" : ","), kind)
              .append(':')
              .append(label.value.doubleValue());
        }
      }
    }
    tail.append("},\"delays_ms\":{").append(delays);
    tail.append("},\"values\":{").append(values);
    tail.append("},\"keep_rate\":1.0,\"state\":\"").append(state);
    tail.append("\",\"elapsed_ms\":").append(elapsedMs);
    tail.append(",\"revision\":").append(impression.revisions).append('}');
    byte[] added = tail.toString().getBytes(StandardCharsets.UTF_8);
    int end = payload.length - 1;
    while (payload[end] != '}') {
      end--; // white space after the object
    }
    byte[] value = new byte[end + added.length];
    System.arraycopy(payload, 0, value, 0, end);
    System.arraycopy(added, 0, value, end, added.length);
    return value;
  }

  private static PairState.Label find(List<PairState.Label> labels, String kind) {
    for (PairState.Label label : labels) {
      if (label.kind.equals(kind)) {
        return label;
      }
    }
    return null;
  }

  private static StringBuilder quote(StringBuilder out, String text) {
    out.append('"');
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < 0x20) {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    return out.append('"');
  }
}
