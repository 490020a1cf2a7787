package dev.headwater.join;

/**
 * The join of one task: its pairs, what of them is due, and the verdicts of {@link PairJoin}. Knows
 * neither Flink nor Kafka. What it remembers is durable once {@link #write} has given it to the pages
 * and these are; an instance made from pages goes on where they were written.
 */
final class JoinLoop {
  private final PairJoin join;
  private final OpenPairs pairs;
  private final DueQueue due = new DueQueue();

  JoinLoop(JoinSettings settings, PageState kept, JoinOutput output) {
    pairs = new OpenPairs(settings.kinds(), kept);
    join = new PairJoin(settings, output, pairs);
  }

  /** Finds what was written to the pages. */
  void restore() throws Exception {
    pairs.restore(due::add);
  }

  /** Judges an event that arrives when the watermark is `watermarkMs`. */
  void onEvent(Event event, long watermarkMs) throws Exception {
    Pair pair = pairs.touch(event.pair());
    join.onEvent(pair, event, watermarkMs);
    leave(pair);
  }

  /** Does all that is due once event time has reached `watermarkMs`. */
  void onWatermark(long watermarkMs) throws Exception {
    due.drain(
        watermarkMs,
        pair -> {
          pairs.touch(pair);
          join.onWatermark(pair, watermarkMs);
          leave(pair);
        });
  }

  private void leave(Pair pair) {
    if (pair.isEmpty()) {
      pair.dueMs = PairState.NO_TIMER;
      pairs.forget(pair);
      return;
    }
    long dueMs = join.nextDueMs(pair);
    if (dueMs < pair.dueMs) {
      pair.dueMs = dueMs;
      due.add(pair);
    }
  }

  /** Gives all that changed to the pages. */
  void write() throws Exception {
    pairs.write();
  }

  /** How many pairs are remembered. */
  int size() {
    return pairs.size();
  }
}
