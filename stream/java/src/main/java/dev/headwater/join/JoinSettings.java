package dev.headwater.join;

import java.util.LinkedHashMap;
import java.util.Map;

/** What the config says about attribution; times in milliseconds. */
record JoinSettings(
    Map<String, Long> windowMsByKind, boolean correct, long elapsedMs, long latenessMs) {

  /** Reads {@code KIND=WINDOW_MS;...}, in config order. */
  static Map<String, Long> windows(String text) {
    Map<String, Long> windows = new LinkedHashMap<>();
    for (String part : text.split(";")) {
      int equals = part.lastIndexOf('=');
      windows.put(part.substring(0, equals), Long.valueOf(part.substring(equals + 1)));
    }
    return windows;
  }

  long longestWindowMs() {
    return windowMsByKind.values().stream().mapToLong(Long::longValue).max().orElseThrow();
  }
}
