package dev.headwater.join;

/** Where the join's verdicts go. */
interface JoinOutput {
  /** Topics by ordinal; the name in lower case is the topic's. */
  enum Topic {
    SAMPLES,
    ATTRIBUTIONS,
    LATE,
    ORPHANS,
    DUPLICATES,
    UNDECODABLE
  }

  /**
   * One record about the event at the source coordinates; the times are those of the newest event in a
   * sample. `reason` is null for samples and attributions.
   */
  void emit(
      Topic topic,
      byte[] key,
      byte[] value,
      boolean conversion,
      int partition,
      long offset,
      long eventMs,
      long producedMs,
      String reason);

  /** An impression's last window closed: its final sample was emitted, or was sampled out. */
  void countClosed(boolean sampled);
}
