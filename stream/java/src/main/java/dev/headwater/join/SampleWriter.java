package dev.headwater.join;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The JSON that the join writes: attributions, and samples spliced onto the impression's bytes. */
final class SampleWriter {
  /** The states of a sample. */
  enum State {
    EARLY("early"),
    CORRECTION("correction"),
    FINAL("final");

    final String word;

    State(String word) {
      this.word = word;
    }
  }

  private static final byte[] PRODUCED = new ByteWriter().ascii(",\"produced_ms\":").toBytes();
  private static final PairState.Impression KEPT = new PairState.Impression();

  static {
    KEPT.keepRate = 1.0;
    KEPT.kept = true;
  }

  private final Untold[] untold =
      Arrays.stream(State.values()).map(Untold::new).toArray(Untold[]::new);
  private final List<Kind> kinds;
  private final byte[][] quotedKinds;
  private final boolean correct;
  private final ByteWriter out = new ByteWriter();
  /** By position of the kind; of what is told, the first conversion, their number and value. */
  private final PairState.Label[] first;

  private final int[] counts;
  private final double[] values;
  private final boolean[] hasValue;
  private final boolean[] delayed;
  /** Event and produce time of the newest event in what is told. */
  long newestMs;

  long newestProducedMs;

  SampleWriter(JoinSettings settings) {
    kinds = settings.kinds();
    correct = settings.correct();
    quotedKinds = new byte[kinds.size()][];
    for (Kind kind : kinds) {
      quotedKinds[kind.position] = new ByteWriter().quoted(kind.name).octet(':').toBytes();
    }
    first = new PairState.Label[kinds.size()];
    counts = new int[kinds.size()];
    values = new double[kinds.size()];
    hasValue = new boolean[kinds.size()];
    delayed = new boolean[kinds.size()];
  }

  byte[] attribution(byte[] conversionId, byte[] impressionId, Kind kind) {
    out.reset().ascii("{\"conversion_id\":").quoted(conversionId);
    out.ascii(",\"impression_id\":").quoted(impressionId);
    return out.ascii(",\"kind\":").quoted(kind.name).octet('}').toBytes();
  }

  /**
   * The sample that tells of `told`, or null if it would name no kind: the impression's object, its
   * own fields untouched, with the sample's fields at its end.
   */
  byte[] sample(
      PairState.Impression impression,
      List<PairState.Label> told,
      State state,
      long elapsedMs,
      int revision) {
    boolean everyKind = impression.kept && state != State.CORRECTION;
    if (!gather(impression, told) && !everyKind) {
      return null;
    }
    out.reset().raw(PRODUCED).decimal(newestProducedMs);
    if (told.isEmpty() && impression.keepRate == 1.0) { // nearly all are, and end alike
      out.raw(untold[state.ordinal()].of(elapsedMs, revision));
    } else {
      writeFields(impression, everyKind, state, elapsedMs, revision);
    }
    byte[] bytes = impression.bytes;
    int end = impression.from + impression.length - 1;
    while (bytes[end] != '}') {
      end--; // white space after the object
    }
    return out.after(bytes, impression.from, end - impression.from);
  }

  /** What nothing was told of ends with, behind the time: the same for long. */
  private final class Untold {
    private final State state;
    private long elapsedMs;
    private int revision;
    private byte[] written;

    Untold(State state) {
      this.state = state;
    }

    byte[] of(long askedMs, int asked) {
      if (written == null || askedMs != elapsedMs || asked != revision) {
        elapsedMs = askedMs;
        revision = asked;
        int begun = out.length();
        writeFields(KEPT, true, state, askedMs, asked);
        written = out.cut(begun);
      }
      return written;
    }
  }

  private void writeFields(
      PairState.Impression impression,
      boolean everyKind,
      State state,
      long elapsedMs,
      int revision) {
    out.ascii(",\"labels\":{");
    boolean comma = false;
    for (int kind = 0; kind < first.length; kind++) {
      if (everyKind || first[kind] != null) {
        comma = name(kind, comma);
        out.octet(first[kind] != null ? '1' : '0');
      }
    }
    out.ascii("},\"delays_ms\":{");
    comma = false;
    for (int kind = 0; kind < first.length; kind++) {
      if (first[kind] != null) {
        comma = name(kind, comma);
        out.decimal(first[kind].eventMs - impression.eventMs);
      }
    }
    writeAmounts();
    boolean all = impression.keepRate == 1.0; // nearly always, and a double takes long to say
    out.ascii("},\"keep_rate\":").ascii(all ? "1.0" : Double.toString(impression.keepRate));
    out.ascii(impression.kept ? ",\"kept\":true" : ",\"kept\":false");
    if (correct) {
      writeDelayed();
    }
    out.ascii(",\"state\":\"").ascii(state.word).ascii("\",\"elapsed_ms\":").decimal(elapsedMs);
    out.ascii(",\"revision\":").decimal(revision).octet('}');
  }

  private void writeAmounts() {
    out.ascii("},\"values\":{");
    boolean comma = false;
    for (int kind = 0; kind < first.length; kind++) {
      if (first[kind] != null && hasValue[kind]) {
        comma = name(kind, comma);
        double value = Math.max(-Double.MAX_VALUE, Math.min(Double.MAX_VALUE, values[kind]));
        out.ascii(Double.toString(value));
      }
    }
    out.ascii("},\"counts\":{");
    comma = false;
    for (int kind = 0; kind < first.length; kind++) {
      if (first[kind] != null) {
        comma = name(kind, comma);
        out.decimal(counts[kind]);
      }
    }
  }

  private void writeDelayed() {
    out.ascii(",\"delayed\":{");
    boolean comma = false;
    for (int kind = 0; kind < first.length; kind++) {
      if (first[kind] != null) {
        comma = name(kind, comma);
        out.octet(delayed[kind] ? '1' : '0');
      }
    }
    out.octet('}');
  }

  /** Sums `told` up by kind; whether any is of a kind in the config. */
  private boolean gather(PairState.Impression impression, List<PairState.Label> told) {
    newestMs = impression.eventMs;
    newestProducedMs = impression.producedMs;
    Arrays.fill(first, null);
    if (told.isEmpty()) {
      return false;
    }
    List<PairState.Label> inOrder = told;
    if (told.size() > 1) {
      inOrder = new ArrayList<>(told);
      inOrder.sort(PairState.Label.BY_TIME);
    }
    boolean any = false;
    for (PairState.Label label : inOrder) {
      if (label.eventMs >= newestMs) {
        newestMs = label.eventMs;
        newestProducedMs = label.producedMs;
      }
      int kind = label.kind.position;
      if (kind < 0) {
        continue;
      }
      any = true;
      boolean leads = first[kind] == null;
      if (leads) {
        first[kind] = label;
        counts[kind] = 0;
        hasValue[kind] = false;
        delayed[kind] = false;
      }
      counts[kind]++;
      delayed[kind] |= label.corrected;
      if (label.value != null) {
        take(kind, label.value, leads);
      }
    }
    return any;
  }

  private void take(int kind, double value, boolean leads) {
    boolean before = hasValue[kind];
    switch (kinds.get(kind).policy) {
      case FIRST -> {
        if (!leads) {
          return;
        }
        values[kind] = value;
      }
      case LAST -> values[kind] = value;
      case SUM -> values[kind] = before ? values[kind] + value : value;
      case MAX -> values[kind] = before ? Math.max(values[kind], value) : value;
    }
    hasValue[kind] = true;
  }

  /** Writes the kind's name and colon; always true: the next one needs a comma. */
  private boolean name(int kind, boolean comma) {
    if (comma) {
      out.octet(',');
    }
    out.raw(quotedKinds[kind]);
    return true;
  }
}
