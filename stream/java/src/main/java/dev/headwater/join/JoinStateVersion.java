package dev.headwater.join;

/** The checkpoint or savepoint was written in a layout that this release does not read. */
final class JoinStateVersion extends IllegalStateException {
  private static final long serialVersionUID = 1L;

  JoinStateVersion(long found) {
    super(
        "join state: expected layout " + PairCodec.VERSION + ", got " + found
            + "; restore it with the release that wrote it, or replay from the topics");
  }
}
