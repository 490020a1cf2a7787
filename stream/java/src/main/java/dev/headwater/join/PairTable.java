package dev.headwater.join;

/**
 * Pairs by key, as an open hash table. The hashes lie side by side, so that looking for a key that is
 * not there, as for most impressions, reads one line of memory and no object.
 *
 * <p>The table holds numbers; pairs stand in a row apart, in the order in which they came. For the
 * garbage collector lays objects out as it finds them: found by hash they would lie in no order, while
 * pairs become due about as they came, and what lies in that order is in the caches when it is read.
 */
final class PairTable {
  private static final int SIZE_MIN = 1 << 10;
  private static final int SPREAD = 0x9E3779B9; // the golden ratio: neighbours in hash part
  /** A hash and, in the lower half, where its pair stands in the row; 0 = nothing here. */
  private long[] slots = new long[SIZE_MIN];

  /** At most half full, filled around and around. */
  private Pair[] row = new Pair[SIZE_MIN];

  private int rowNext;
  private int many;

  private static int hash(PairKey key) {
    int hash = key.hashCode() * SPREAD;
    return hash == 0 ? SPREAD : hash;
  }

  private int home(int hash) {
    return hash >>> (Integer.numberOfLeadingZeros(slots.length) + 1);
  }

  private static long slot(int hash, int inRow) {
    return (long) hash << 32 | inRow;
  }

  private static int hashIn(long slot) {
    return (int) (slot >>> 32);
  }

  /** The pair of `key`, or null. */
  Pair get(PairKey key) {
    int mask = slots.length - 1;
    int hash = hash(key);
    for (int at = home(hash); slots[at] != 0; at = (at + 1) & mask) {
      if (hashIn(slots[at]) == hash) {
        Pair pair = row[(int) slots[at]];
        if (pair.key.equals(key)) {
          return pair;
        }
      }
    }
    return null;
  }

  /** Adds a pair whose key is not there. */
  void add(Pair pair) {
    if (++many > slots.length / 2) {
      grow();
    }
    while (row[rowNext] != null) {
      rowNext = (rowNext + 1) & (row.length - 1);
    }
    row[rowNext] = pair;
    pair.row = rowNext;
    rowNext = (rowNext + 1) & (row.length - 1);
    place(hash(pair.key), pair.row);
  }

  private void place(int hash, int inRow) {
    int mask = slots.length - 1;
    int at = home(hash);
    while (slots[at] != 0) {
      at = (at + 1) & mask;
    }
    slots[at] = slot(hash, inRow);
  }

  private void grow() {
    Pair[] before = row;
    int from = rowNext;
    slots = new long[slots.length * 2];
    row = new Pair[slots.length];
    rowNext = 0;
    for (int i = 0; i < before.length; i++) { // from the one that came first
      Pair pair = before[(from + i) & (before.length - 1)];
      if (pair != null) {
        row[rowNext] = pair;
        pair.row = rowNext;
        place(hash(pair.key), rowNext++);
      }
    }
  }

  /** Removes a pair that is there. */
  void remove(Pair pair) {
    if (row[pair.row] != pair) {
      throw new IllegalStateException("join state: expected a pair that is there: " + pair.key);
    }
    int mask = slots.length - 1;
    int hash = hash(pair.key);
    int hole = home(hash);
    while (slots[hole] != slot(hash, pair.row)) {
      hole = (hole + 1) & mask;
    }
    row[pair.row] = null;
    for (int at = (hole + 1) & mask; slots[at] != 0; at = (at + 1) & mask) {
      int from = home(hashIn(slots[at]));
      if (((at - from) & mask) >= ((at - hole) & mask)) { // it may stand in the hole
        slots[hole] = slots[at];
        hole = at;
      }
    }
    slots[hole] = 0;
    many--;
  }

  int size() {
    return many;
  }
}
