package dev.headwater.join;

import java.util.ArrayList;
import java.util.BitSet;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;

/**
 * Every pair that the join remembers. Which pairs there are is in memory; so is the state of those in
 * use. {@link #write} gives Flink's state all that was touched since the last time, as new pages, and
 * shelves what was last touched before that: it is read again, from its page, at its next touch.
 *
 * <p>So a checkpoint costs what is open and changed, in some hundred large values, whatever the state
 * backend; and a pair that opens and closes between two checkpoints costs none of it.
 */
final class OpenPairs {
  private static final int PAGE_BYTES = 32 << 10;
  private static final long CACHED_BYTES_MAX = 64L << 20;
  private static final int SMALL_PAGE_BYTES = PAGE_BYTES / 4;
  private static final int SMALL_PAGES_MAX = 32;
  /** A page with fewer live entries than one of so many is written anew with others. */
  private static final int SPARSE = 4;

  private final PairTable pairs = new PairTable();
  private final Map<Integer, Map<Long, Page>> groups = new HashMap<>();
  private final Map<Integer, List<Pair>> byGroup = new TreeMap<>();
  private final PageState kept;
  private final PairCodec codec;
  private final ByteWriter out = new ByteWriter();
  private final LinkedHashMap<Page, byte[]> read = new LinkedHashMap<>(16, 0.75f, true);
  private long readBytes;
  private long numberNext;
  /** The number of the present period between two checkpoints, and who was touched in it. */
  private long period;

  private List<Pair> touched = new ArrayList<>();
  private List<Pair> touchedBefore = new ArrayList<>();

  OpenPairs(List<Kind> kinds, PageState kept) {
    this.kept = kept;
    this.codec = new PairCodec(kinds);
  }

  /** Finds the pairs of a restored state; tells of each, shelved, with what it has due. */
  void restore(Consumer<Pair> found) throws Exception {
    kept.each(
        (group, number, bytes, dead) -> {
          Page page = new Page(number, dead == null ? new BitSet() : BitSet.valueOf(dead));
          page.bytes = bytes.length;
          numberNext = Math.max(numberNext, number + 1);
          pages(group).put(number, page);
          for (PairCodec.Entry entry : codec.entries(bytes)) {
            Page.Place place = page.add(entry.at());
            if (entry.isPair() && !page.isDead(place.index())) {
              Pair pair = new Pair(entry.key(), group);
              pair.place = place;
              pair.dueMs = entry.dueMs();
              pairs.add(pair);
              found.accept(pair);
            }
          }
        });
  }

  /** The pair of `key`, new or known, with its state. */
  Pair touch(PairKey key) throws Exception {
    Pair pair = pairs.get(key);
    if (pair == null) {
      pair = new Pair(key, kept.groupOf(key));
      pair.inMemory = true;
      pairs.add(pair);
    }
    touch(pair);
    return pair;
  }

  /** Gives a known pair its state; what is done to it is written by the next {@link #write}. */
  void touch(Pair pair) throws Exception {
    if (!pair.inMemory) {
      byte[] page = bytes(pair.group, pair.place.page());
      codec.decode(pair, page, pair.place.at(), pages(pair.group));
      pair.inMemory = true;
    }
    if (pair.touchedIn != period) {
      pair.touchedIn = period;
      pair.touchedAt = touched.size();
      touched.add(pair);
    }
  }

  /** Nothing is left to remember of the pair, which is touched. */
  void forget(Pair pair) {
    pairs.remove(pair);
    if (pair.place == null && pair.dropped.isEmpty()) {
      // Pages have nothing of it, so the next write need not see it. Most end so: kept until then
      // they would be most of what is in memory.
      Pair last = touched.remove(touched.size() - 1);
      if (last != pair) {
        if (touched.set(pair.touchedAt, last) != pair) {
          throw new IllegalStateException("join state: expected a touched pair: " + pair.key);
        }
        last.touchedAt = pair.touchedAt;
      }
    }
  }

  int size() {
    return pairs.size();
  }

  /** The bytes of a payload that lies apart from its pair. */
  Span payload(PairKey key, Page.Place place) {
    try {
      return codec.payloadAt(bytes(kept.groupOf(key), place.page()), place.at());
    } catch (Exception failed) {
      throw new IllegalStateException("join state: a payload is not readable", failed);
    }
  }

  /** See the class. */
  void write() throws Exception {
    List<Pair> all = touched;
    touched = new ArrayList<>(); // takes what compaction touches
    for (Pair pair : all) { // in this order: of two of one key the forgotten one is before
      byGroup.computeIfAbsent(pair.group, missing -> new ArrayList<>()).add(pair);
    }
    for (Map.Entry<Integer, List<Pair>> group : byGroup.entrySet()) {
      if (!group.getValue().isEmpty()) {
        writeGroup(group.getKey(), group.getValue());
        group.getValue().clear();
      }
    }
    all.addAll(touched);
    for (Pair pair : touchedBefore) {
      if (pair.touchedIn != period) {
        pair.clear();
        pair.inMemory = false;
      }
    }
    touchedBefore = all;
    touched = new ArrayList<>(all.size());
    period++;
  }

  private void writeGroup(int group, List<Pair> own) throws Exception {
    Map<Long, Page> pages = pages(group);
    own.forEach(OpenPairs::release);
    int from = touched.size();
    touchSurvivors(group, pages);
    List<Pair> survivors = touched.subList(from, touched.size());
    survivors.forEach(OpenPairs::release);
    Page page = begin();
    for (List<Pair> some : List.of(own, survivors)) {
      for (Pair pair : some) {
        if (!pair.isEmpty()) {
          if (out.length() >= PAGE_BYTES) {
            page = finish(group, pages, page);
          }
          codec.writePayloads(out, pair, page);
          pair.place = page.add(out.length());
          codec.write(out, pair, pair.dueMs);
        }
      }
    }
    finish(group, pages, page);
    for (Page each : List.copyOf(pages.values())) {
      if (!each.changed) {
        continue;
      }
      each.changed = false;
      if (each.alive() == 0) {
        pages.remove(each.number);
        forgetRead(each);
        kept.drop(group, each.number);
      } else {
        kept.keepDead(group, each.number, each.deadBits());
      }
    }
  }

  /** What the pair left in pages is no more: it is written anew, or has nothing left. */
  private static void release(Pair pair) {
    if (pair.place != null) {
      pair.place.page().kill(pair.place.index());
      pair.place = null;
    }
    for (Page.Place place : pair.dropped) {
      place.page().kill(place.index());
    }
    pair.dropped = Collections.emptyList();
  }

  /** Touches what lives in pages that are not worth keeping: many small ones, and sparse ones. */
  private void touchSurvivors(int group, Map<Long, Page> pages) throws Exception {
    List<Page> small = new ArrayList<>(0);
    List<Page> leave = new ArrayList<>(0);
    for (Page page : pages.values()) {
      if (page.bytes < SMALL_PAGE_BYTES) {
        small.add(page);
      } else if (page.changed && page.alive() * SPARSE < page.entries) {
        leave.add(page);
      }
    }
    if (small.size() > SMALL_PAGES_MAX) {
      leave.addAll(small);
    }
    for (Page page : leave) {
      if (page.alive() > 0) {
        leave(page, bytes(group, page));
      }
    }
  }

  private void leave(Page page, byte[] bytes) throws Exception {
    int index = 0;
    for (PairCodec.Entry entry : codec.entries(bytes)) {
      if (!page.isDead(index)) {
        Pair pair = pairs.get(entry.key());
        touch(pair);
        if (!entry.isPair()) {
          pair.bringHome(page, index, codec.payloadAt(bytes, entry.at()));
          page.kill(index);
        }
      }
      index++;
    }
  }

  private Page begin() {
    out.reset();
    return new Page(numberNext++, new BitSet());
  }

  private Page finish(int group, Map<Long, Page> pages, Page page) throws Exception {
    if (page.entries > 0) {
      page.bytes = out.length();
      pages.put(page.number, page);
      kept.keepPage(group, page.number, out.toBytes());
    }
    return begin();
  }

  private Map<Long, Page> pages(int group) {
    return groups.computeIfAbsent(group, missing -> new HashMap<>());
  }

  private byte[] bytes(int group, Page page) throws Exception {
    byte[] bytes = read.get(page);
    if (bytes == null) {
      bytes = kept.page(group, page.number);
      read.put(page, bytes);
      readBytes += bytes.length;
      while (readBytes > CACHED_BYTES_MAX && read.size() > 1) {
        forgetRead(read.keySet().iterator().next());
      }
    }
    return bytes;
  }

  private void forgetRead(Page page) {
    byte[] bytes = read.remove(page);
    readBytes -= bytes == null ? 0 : bytes.length;
  }
}
