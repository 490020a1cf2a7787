package dev.headwater.join;

/** A pair that the join remembers: always in memory, its state only while it is in use. */
final class Pair {
  final PairKey key;
  final int group;
  /** When something of it is due next; {@link PairState#NO_TIMER} once it is forgotten. */
  long dueMs = PairState.NO_TIMER;
  /** Null while it is shelved: then its page has all of it. */
  PairState state;
  /** Where it was written last; null = nowhere yet. */
  Page.Place place;
  /** Which period between two checkpoints it was last touched in. */
  long touchedIn = -1;
  /** Its place among those. */
  int touchedAt;
  /** Its place in {@link PairTable}. */
  int row;

  Pair(PairKey key, int group) {
    this.key = key;
    this.group = group;
  }
}
