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
  /** 512 ms: few enough slices that their ends stay in the processor's caches. */
  private static final int SLICE_BITS = 9;

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

    /** Moves what is due by `watermarkMs` to the end; returns where it begins. */
    int part(long watermarkMs) {
      int from = 0;
      for (int i = 0; i < size; i++) {
        long time = times[i];
        if (time > watermarkMs) {
          Pair pair = pairs[i];
          times[i] = times[from];
          pairs[i] = pairs[from];
          times[from] = time;
          pairs[from++] = pair;
        }
      }
      return from;
    }
  }

  void add(Pair pair) {
    slice(pair.dueMs >> SLICE_BITS).add(pair.dueMs, pair);
  }

  private Slice slice(long at) {
    if (at != newestAt) {
      newest = slices.computeIfAbsent(at, missing -> new Slice());
      newestAt = at;
    }
    return newest;
  }

  /** Takes out every pair that is due at `watermarkMs`; what `due` adds meanwhile must be later. */
  void drain(long watermarkMs, Due due) throws Exception {
    while (!slices.isEmpty() && slices.firstKey() << SLICE_BITS <= watermarkMs) {
      long at = slices.firstKey();
      Slice slice = slices.remove(at);
      newestAt = Long.MIN_VALUE;
      int from = slice.part(watermarkMs);
      for (int i = from; i < slice.size; i++) {
        Pair pair = slice.pairs[i];
        if (pair.dueMs == slice.times[i]) {
          pair.dueMs = PairState.NO_TIMER;
          due.act(pair);
        }
      }
      if (from > 0) { // the watermark lies within this slice
        Arrays.fill(slice.pairs, from, slice.size, null);
        slice.size = from;
        putBack(at, slice);
        return;
      }
    }
  }

  private void putBack(long at, Slice slice) {
    Slice added = slices.put(at, slice);
    for (int i = 0; added != null && i < added.size; i++) {
      slice.add(added.times[i], added.pairs[i]);
    }
    newestAt = Long.MIN_VALUE;
  }
}
