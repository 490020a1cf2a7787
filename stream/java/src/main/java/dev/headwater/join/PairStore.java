package dev.headwater.join;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.table.api.dataview.MapView;

/**
 * Between {@link PairState} and Flink's state. A pair of up to {@link #TOGETHER_MAX} parts is one value,
 * read and written whole. A larger one is spread over a map, an entry each; it is kept decoded
 * here as well, so that a touch reads nothing and writes what has changed.
 *
 * <p>One operator instance owns its keys, and a restored one starts with an empty cache, so the cache
 * is never behind the state.
 */
final class PairStore {
  static final int TOGETHER_MAX = 16;
  /** Entries of all cached pairs together, of some 200 bytes each. */
  private static final int CACHED_ENTRIES_MAX = 200_000;

  private final PairCodec codec;
  private final LinkedHashMap<ByteBuffer, PairState> spread = new LinkedHashMap<>(16, 0.75f, true);
  private final Map<ByteBuffer, Integer> sizes = new LinkedHashMap<>();
  private int cachedEntries;

  PairStore(PairCodec codec) {
    this.codec = codec;
  }

  /** The pair whose own value is `pair` (null = none). */
  PairState read(byte[] pair, MapView<Long, byte[]> entries) {
    PairState state = codec.decode(pair);
    if (!state.spread) {
      return state;
    }
    PairState cached = spread.get(key(state));
    return cached != null ? cached : load(state, entries);
  }

  /** The pair's own value, null once there is nothing to remember; entries are written. */
  byte[] write(PairState state, MapView<Long, byte[]> entries) {
    if (!state.spread && state.size() > TOGETHER_MAX) {
      state.spread = true;
    }
    if (state.spread) {
      writeEntries(state, entries);
    }
    return state.isEmpty() ? null : codec.encode(state);
  }

  private void writeEntries(PairState state, MapView<Long, byte[]> entries) {
    try {
      for (long number : state.dropped) {
        entries.remove(number);
      }
      state.dropped.clear();
      for (PairState.Impression impression : state.open) {
        if (claim(state, impression)) {
          entries.put(impression.number, codec.entry(impression));
        }
        for (PairState.Label label : impression.labels) {
          if (claim(state, label)) {
            entries.put(label.number, codec.entry(label, impression.number));
          }
        }
      }
      for (PairState.Waiting waiting : state.waiting) {
        if (claim(state, waiting)) {
          entries.put(waiting.number, codec.entry(waiting));
        }
      }
      for (PairState.Seen seen : state.seen) {
        if (claim(state, seen)) {
          entries.put(seen.number, codec.entry(seen));
        }
      }
    } catch (Exception failed) {
      throw new IllegalStateException("join state: entries of a pair not written", failed);
    }
    cache(state);
  }

  /** Whether the entry has to be written, under its number. */
  private static boolean claim(PairState state, PairState.Entry entry) {
    if (!entry.dirty) {
      return false;
    }
    entry.dirty = false;
    if (entry.number < 0) {
      entry.number = state.numberNext++;
    }
    return true;
  }

  private PairState load(PairState state, MapView<Long, byte[]> entries) {
    List<Map.Entry<Long, byte[]>> labels = new ArrayList<>();
    try {
      for (Map.Entry<Long, byte[]> entry : entries.entries()) {
        if (PairCodec.isLabel(entry.getValue())) {
          labels.add(Map.entry(entry.getKey(), entry.getValue()));
        } else {
          codec.decodeEntry(state, entry.getKey(), entry.getValue());
        }
      }
    } catch (Exception failed) {
      throw new IllegalStateException("join state: entries of a pair not readable", failed);
    }
    Map<Long, PairState.Impression> byNumber = new LinkedHashMap<>();
    state.open.forEach(open -> byNumber.put(open.number, open));
    for (Map.Entry<Long, byte[]> label : labels) {
      codec.decodeLabel(byNumber, label.getKey(), label.getValue());
    }
    cache(state);
    return state;
  }

  private void cache(PairState state) {
    ByteBuffer key = key(state);
    forget(key);
    if (state.isEmpty()) {
      return;
    }
    int size = state.size();
    spread.put(key, state);
    sizes.put(key, size);
    cachedEntries += size;
    while (cachedEntries > CACHED_ENTRIES_MAX && spread.size() > 1) {
      forget(spread.keySet().iterator().next());
    }
  }

  private void forget(ByteBuffer key) {
    if (spread.remove(key) != null) {
      cachedEntries -= sizes.remove(key);
    }
  }

  private static ByteBuffer key(PairState state) {
    ByteBuffer key = ByteBuffer.allocate(4 + state.userId.length + state.itemId.length);
    return key.putInt(state.userId.length).put(state.userId).put(state.itemId).flip();
  }
}
