package dev.headwater.join;

import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;

/** A kind of conversion; one that the config has dropped since has a window of -1. */
final class Kind implements Serializable {
  private static final long serialVersionUID = 1L;

  /** Which value a sample holds where an impression has several conversions of the kind. */
  enum ValuePolicy {
    FIRST,
    LAST,
    SUM,
    MAX
  }

  /** Position in the config; -1 if it is not there any more. */
  final int position;

  final byte[] name;
  final long windowMs;
  final ValuePolicy policy;

  Kind(int position, byte[] name, long windowMs, ValuePolicy policy) {
    this.position = position;
    this.name = name;
    this.windowMs = windowMs;
    this.policy = policy;
  }

  /** The kind that `kinds` has under the name, or one that nothing is attributed to any more. */
  static Kind of(List<Kind> kinds, byte[] bytes, int from, int to) {
    for (Kind kind : kinds) {
      if (Arrays.equals(kind.name, 0, kind.name.length, bytes, from, to)) {
        return kind;
      }
    }
    return new Kind(-1, Arrays.copyOfRange(bytes, from, to), -1, ValuePolicy.FIRST);
  }

  @Override
  public String toString() {
    return new String(name, StandardCharsets.UTF_8);
  }
}
