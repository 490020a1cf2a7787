package dev.headwater.join;

import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.zip.CRC32;

/** What the config says about attribution; times in milliseconds. */
public record JoinSettings(
    List<Kind> kinds,
    boolean correct,
    long elapsedMs,
    long latenessMs,
    double keepRate,
    Map<String, Double> keepRateByDomain)
    implements Serializable {
  private static final int SALT = 0x9E3779B9;

  /** As stream/topology.py says them: {@code KIND=WINDOW_MS:POLICY;...} and {@code DOMAIN=RATE;...}. */
  public static JoinSettings of(
      String kinds,
      boolean correct,
      long elapsedMs,
      long latenessMs,
      double keepRate,
      String keepRateByDomain) {
    return new JoinSettings(
        kinds(kinds), correct, elapsedMs, latenessMs, keepRate, rates(keepRateByDomain));
  }

  /** Those of the kinds, in their order. */
  byte[][] kindNames() {
    return kinds.stream().map(kind -> kind.name).toArray(byte[][]::new);
  }

  /** In config order. */
  static List<Kind> kinds(String text) {
    List<Kind> kinds = new ArrayList<>();
    for (String part : text.split(";")) {
      int equals = part.lastIndexOf('=');
      int colon = part.lastIndexOf(':');
      kinds.add(
          new Kind(
              kinds.size(),
              part.substring(0, equals).getBytes(StandardCharsets.UTF_8),
              Long.parseLong(part.substring(equals + 1, colon)),
              Kind.ValuePolicy.valueOf(part.substring(colon + 1).toUpperCase(Locale.ROOT))));
    }
    return kinds;
  }

  static Map<String, Double> rates(String text) {
    Map<String, Double> rates = new LinkedHashMap<>();
    for (String part : text.isEmpty() ? new String[0] : text.split(";")) {
      int equals = part.lastIndexOf('=');
      rates.put(part.substring(0, equals), Double.valueOf(part.substring(equals + 1)));
    }
    return rates;
  }

  /** After it no impression can be converted any more. */
  public long longestWindowMs() {
    return kinds.stream().mapToLong(kind -> kind.windowMs).max().orElseThrow();
  }

  /** The share of negatives that is kept in a domain (null where no rate depends on it). */
  double keepRate(byte[] domain) {
    if (keepRateByDomain.isEmpty() || domain == null) {
      return keepRate;
    }
    return keepRateByDomain.getOrDefault(new String(domain, StandardCharsets.UTF_8), keepRate);
  }

  /** Whether the negatives of an impression are kept; topics/sample.py has the same function. */
  static boolean negativesKept(byte[] id, double keepRate) {
    if (keepRate >= 1.0) {
      return true;
    }
    CRC32 crc = new CRC32();
    crc.update(id);
    int h = (int) crc.getValue() ^ SALT;
    h = (h ^ h >>> 16) * 0x85EBCA6B;
    h = (h ^ h >>> 13) * 0xC2B2AE35;
    return ((h ^ h >>> 16) & 0xFFFFFFFFL) < keepRate * 0x1p32;
  }

  /** Orders ids by code point, which is that of the UTF-8 bytes and of most languages' strings. */
  static int compareIds(byte[] a, byte[] b) {
    return Arrays.compareUnsigned(a, b);
  }
}
