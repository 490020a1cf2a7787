package dev.headwater.join;

import java.util.Arrays;
import java.util.TreeMap;

/**
 * Pairs by the event time at which something of them is due, in slices of event time. Within a slice
 * they are in no order: what a pair does at a watermark does not depend on the others. So an entry costs
 * a place at the end of an array, and not a walk through a heap of everything that is open.
 *
 * <p>Entries are never removed from the midst; one that its pair has outlived is passed over.
 */
final class DueQueue {
  private static final int SLICE_BITS = 6; // 64 ms: less than two watermarks lie apart

  private final TreeMap<Long, Slice> slices = new TreeMap<>();
  private Slice newest;
  private long newestAt = Long.MIN_VALUE;

  /** What to do with a pair that is due. */
  interface Due {
    void act(Pair pair) throws Exception;
  }

  private static final class Slice {
    long[] times = new long[16];
    Pair[] pairs = new Pair[16];
    int size;

    void add(long dueMs, Pair pair) {
      if (size == times.length) {
        times = Arrays.copyOf(times, size * 2);
        pairs = Arrays.copyOf(pairs, size * 2);
      }
      times[size] = dueMs;
      pairs[size++] = pair;
    }
  }

  void add(Pair pair) {
    long at = pair.dueMs >> SLICE_BITS;
    if (at != newestAt) {
      newest = slices.computeIfAbsent(at, missing -> new Slice());
      newestAt = at;
    }
    newest.add(pair.dueMs, pair);
  }

  /** Takes out every pair that is due at `watermarkMs`; what `due` adds meanwhile must be later. */
  void drain(long watermarkMs, Due due) throws Exception {
    while (!slices.isEmpty() && slices.firstKey() << SLICE_BITS <= watermarkMs) {
      Slice slice = slices.pollFirstEntry().getValue();
      newestAt = Long.MIN_VALUE;
      boolean some = false;
      for (int i = 0; i < slice.size; i++) {
        Pair pair = slice.pairs[i];
        if (pair.dueMs != slice.times[i]) {
          continue;
        }
        if (pair.dueMs <= watermarkMs) {
          pair.dueMs = PairState.NO_TIMER;
          due.act(pair);
        } else {
          add(pair);
          some = true;
        }
      }
      if (some) {
        return; // the watermark lies within this slice
      }
    }
  }
}
