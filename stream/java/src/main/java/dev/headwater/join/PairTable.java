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
  /** 0 = nothing here; so no pair has this hash. */
  private int[] hashes = new int[SIZE_MIN];

  /** Beside a hash, where its pair stands in the row. */
  private int[] places = new int[SIZE_MIN];

  /** At most half full, filled around and around. */
  private Pair[] row = new Pair[SIZE_MIN];

  private int rowNext;
  private int many;

  private static int hash(PairKey key) {
    int hash = key.hashCode() * SPREAD;
    return hash == 0 ? SPREAD : hash;
  }

  private int home(int hash) {
    return hash >>> (Integer.numberOfLeadingZeros(hashes.length) + 1);
  }

  /** The pair of `key`, or null. */
  Pair get(PairKey key) {
    int mask = hashes.length - 1;
    int hash = hash(key);
    for (int at = home(hash); hashes[at] != 0; at = (at + 1) & mask) {
      if (hashes[at] == hash && row[places[at]].key.equals(key)) {
        return row[places[at]];
      }
    }
    return null;
  }

  /** Adds a pair whose key is not there. */
  void add(Pair pair) {
    if (++many > hashes.length / 2) {
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
    int mask = hashes.length - 1;
    int at = home(hash);
    while (hashes[at] != 0) {
      at = (at + 1) & mask;
    }
    hashes[at] = hash;
    places[at] = inRow;
  }

  private void grow() {
    Pair[] before = row;
    int from = rowNext;
    hashes = new int[hashes.length * 2];
    places = new int[hashes.length];
    row = new Pair[hashes.length];
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
    int mask = hashes.length - 1;
    int hole = home(hash(pair.key));
    if (row[pair.row] != pair) {
      throw new IllegalStateException("join state: expected a pair that is there: " + pair.key);
    }
    while (places[hole] != pair.row || hashes[hole] == 0) {
      hole = (hole + 1) & mask;
    }
    row[pair.row] = null;
    for (int at = (hole + 1) & mask; hashes[at] != 0; at = (at + 1) & mask) {
      int from = home(hashes[at]);
      if (((at - from) & mask) >= ((at - hole) & mask)) { // it may stand in the hole
        hashes[hole] = hashes[at];
        places[hole] = places[at];
        hole = at;
      }
    }
    hashes[hole] = 0;
    many--;
  }

  int size() {
    return many;
  }
}
