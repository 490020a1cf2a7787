package dev.headwater.join;

/**
 * Pairs by key, as an open hash table. The hashes lie side by side, so that looking for a key that is
 * not there, as for most impressions, reads one line of memory and no object.
 */
final class PairTable {
  private static final int SIZE_MIN = 1 << 10;
  private static final int SPREAD = 0x9E3779B9; // the golden ratio: neighbours in hash part
  /** 0 = nothing here; so no pair has this hash. */
  private int[] hashes = new int[SIZE_MIN];

  private Pair[] pairs = new Pair[SIZE_MIN];
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
      if (hashes[at] == hash && pairs[at].key.equals(key)) {
        return pairs[at];
      }
    }
    return null;
  }

  /** Adds a pair whose key is not there. */
  void add(Pair pair) {
    if (++many > hashes.length / 2) {
      grow();
    }
    place(hash(pair.key), pair);
  }

  private void place(int hash, Pair pair) {
    int mask = hashes.length - 1;
    int at = home(hash);
    while (hashes[at] != 0) {
      at = (at + 1) & mask;
    }
    hashes[at] = hash;
    pairs[at] = pair;
  }

  private void grow() {
    int[] oldHashes = hashes;
    Pair[] oldPairs = pairs;
    hashes = new int[oldHashes.length * 2];
    pairs = new Pair[oldHashes.length * 2];
    for (int i = 0; i < oldHashes.length; i++) {
      if (oldHashes[i] != 0) {
        place(oldHashes[i], oldPairs[i]);
      }
    }
  }

  /** Removes a pair that is there. */
  void remove(Pair pair) {
    int mask = hashes.length - 1;
    int hole = home(hash(pair.key));
    while (pairs[hole] != pair) {
      if (hashes[hole] == 0) {
        throw new IllegalStateException("join state: expected a pair that is there: " + pair.key);
      }
      hole = (hole + 1) & mask;
    }
    for (int at = (hole + 1) & mask; hashes[at] != 0; at = (at + 1) & mask) {
      int from = home(hashes[at]);
      if (((at - from) & mask) >= ((at - hole) & mask)) { // it may stand in the hole
        hashes[hole] = hashes[at];
        pairs[hole] = pairs[at];
        hole = at;
      }
    }
    hashes[hole] = 0;
    pairs[hole] = null;
    many--;
  }

  int size() {
    return many;
  }
}
