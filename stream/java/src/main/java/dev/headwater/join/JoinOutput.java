package dev.headwater.join;

/** Where the join's verdicts go, and where large payloads are kept meanwhile. */
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
   * Source coordinates and times of the event that a record is about; times of the newest event in a
   * sample.
   */
  record About(boolean conversion, int partition, long offset, long eventMs, long producedMs) {}

  /** One record; `reason` is null for samples and attributions. */
  void emit(Topic topic, byte[] key, byte[] value, About about, String reason);

  /** An impression's last window closed: its final sample was emitted. */
  void countSampled();

  byte[] load(long number);

  void keep(long number, byte[] payload);

  void drop(long number);
}
