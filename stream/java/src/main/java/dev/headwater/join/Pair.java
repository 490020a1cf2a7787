package dev.headwater.join;

/** A pair that the join remembers: always in memory, its state only while it is in use. */
final class Pair extends PairState {
  final int group;
  /** When something of it is due next; {@link #NO_TIMER} once it is forgotten. */
  long dueMs = NO_TIMER;
  /** Its state is in memory; while it is shelved its page has all of it, and the lists are empty. */
  boolean inMemory;
  /** Where it was written last; null = nowhere yet. */
  Page.Place place;
  /** Which period between two checkpoints it was last touched in. */
  long touchedIn = -1;
  /** Its place among those. */
  int touchedAt;
  /** Its place in {@link PairTable}. */
  int row;

  Pair(PairKey key, int group) {
    super(key);
    this.group = group;
  }
}
