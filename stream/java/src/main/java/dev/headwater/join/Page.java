package dev.headwater.join;

import java.util.BitSet;

/**
 * What is known of one page: some dozens of pairs, written together and never changed. A pair that is
 * written again, or forgotten, leaves a dead entry behind; a page without a live one is dropped.
 */
final class Page {
  /** An entry of a page. */
  record Place(Page page, int at, int index) {}

  final long number;
  int bytes;
  int entries;
  /** Its dead entries differ from those in Flink's state. */
  boolean changed;
  private final BitSet dead;

  Page(long number, BitSet dead) {
    this.number = number;
    this.dead = dead;
  }

  /** Counts one more entry, at `at`. */
  Place add(int at) {
    return new Place(this, at, entries++);
  }

  void kill(int index) {
    dead.set(index);
    changed = true;
  }

  boolean isDead(int index) {
    return dead.get(index);
  }

  int alive() {
    return entries - dead.cardinality();
  }

  boolean anyDead() {
    return !dead.isEmpty();
  }

  byte[] deadBits() {
    return dead.toByteArray();
  }
}
