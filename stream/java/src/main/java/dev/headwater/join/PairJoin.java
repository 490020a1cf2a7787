package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * The verdicts of one (user, item) pair, as a state machine that knows neither Flink nor Kafka.
 *
 * <p>Everything that waits for the watermark is done in order of event time, whatever the watermark's
 * steps: at a time t first waiting conversions, then early samples, then closing impressions. So the
 * outcome depends on the events and on the watermark at each arrival, never on when timers fire.
 */
final class PairJoin {
  private final JoinSettings settings;
  private final long longestMs;
  private final JoinOutput output;
  private final OpenPairs pairs;
  private final SampleWriter writer;

  /** `pairs` is where payloads are found that lie apart. */
  PairJoin(JoinSettings settings, JoinOutput output, OpenPairs pairs) {
    this.settings = settings;
    this.longestMs = settings.longestWindowMs();
    this.output = output;
    this.pairs = pairs;
    this.writer = new SampleWriter(settings);
  }

  /** Judges `event`, which arrives when the operator's watermark is `watermarkMs`. */
  void onEvent(PairState state, Event event, long watermarkMs) {
    onWatermark(state, watermarkMs);
    if (isDuplicate(state, event)) {
      String reason = "id: expected one not seen before, got " + text(event.id());
      aside(JoinOutput.Topic.DUPLICATES, event, reason);
    } else if (event.conversion()) {
      onConversion(state, event, watermarkMs);
    } else {
      onImpression(state, event, watermarkMs);
    }
  }

  /** Does all that is due once event time has reached `watermarkMs`. */
  void onWatermark(PairState state, long watermarkMs) {
    while (true) {
      PairState.Waiting conversion = state.firstWaiting();
      PairState.Impression early = settings.correct() ? state.firstEarly() : null;
      PairState.Impression closing = state.firstOpen();
      long conversionMs = conversion == null ? Long.MAX_VALUE : conversion.eventMs;
      long earlyMs = early == null ? Long.MAX_VALUE : early.eventMs + settings.elapsedMs();
      long closingMs = closing == null ? Long.MAX_VALUE : closing.eventMs + longestMs;
      long nextMs = Math.min(conversionMs, Math.min(earlyMs, closingMs));
      if (nextMs > watermarkMs || nextMs == Long.MAX_VALUE) {
        break;
      }
      if (conversionMs == nextMs) {
        resolve(state, conversion);
      } else if (earlyMs == nextMs) {
        sampleEarly(state, early);
      } else {
        close(state, closing);
      }
    }
    for (PairState.Seen each = state.seen; each != null; each = each.next) {
      if (watermarkMs > retainedMs(each.eventMs)) {
        state.remove(each);
      }
    }
  }

  /** The next event time at which something is due, or {@link PairState#NO_TIMER}. */
  long nextDueMs(PairState state) {
    long due = PairState.NO_TIMER;
    for (PairState.Waiting each = state.waiting; each != null; each = each.next) {
      due = Math.min(due, each.eventMs);
    }
    for (PairState.Impression each = state.open; each != null; each = each.next) {
      boolean awaitsEarly = settings.correct() && !each.earlyDone;
      due = Math.min(due, each.eventMs + (awaitsEarly ? settings.elapsedMs() : longestMs));
    }
    if (due == PairState.NO_TIMER) {
      // Nothing else brings us back: come once, when the last id may be forgotten.
      for (PairState.Seen each = state.seen; each != null; each = each.next) {
        long forgetMs = retainedMs(each.eventMs) + 1;
        due = due == PairState.NO_TIMER ? forgetMs : Math.max(due, forgetMs);
      }
    }
    return due;
  }

  private long retainedMs(long eventMs) {
    return eventMs + longestMs + settings.latenessMs();
  }

  private static boolean isDuplicate(PairState state, Event event) {
    byte[] id = event.id();
    for (PairState.Seen each = state.seen; each != null; each = each.next) {
      if (each.conversion == event.conversion() && Arrays.equals(each.id, id)) {
        return true;
      }
    }
    for (PairState.Impression open = state.open; open != null; open = open.next) {
      if (!event.conversion()) {
        if (Arrays.equals(open.id, id)) {
          return true;
        }
        continue;
      }
      for (PairState.Label label = open.labels; label != null; label = label.next) {
        if (Arrays.equals(label.id, id)) {
          return true;
        }
      }
    }
    if (event.conversion()) {
      for (PairState.Waiting each = state.waiting; each != null; each = each.next) {
        if (Arrays.equals(each.id, id)) {
          return true;
        }
      }
    }
    return false;
  }

  private void onImpression(PairState state, Event event, long watermarkMs) {
    if (event.eventMs() <= watermarkMs) {
      late(state, event, watermarkMs);
      return;
    }
    PairState.Impression impression = new PairState.Impression();
    impression.hold(event);
    impression.keepRate = settings.keepRate(event.domain());
    impression.kept = JoinSettings.negativesKept(event.id(), impression.keepRate);
    state.add(impression);
    if (state.waiting != null) {
      attributeWaiting(state, impression);
    }
    if (settings.correct() && settings.elapsedMs() == 0) {
      sampleEarly(state, impression);
    }
  }

  /** The conversions that came before the impression that they name. */
  private void attributeWaiting(PairState state, PairState.Impression impression) {
    List<PairState.Waiting> own = new ArrayList<>(1);
    for (PairState.Waiting each = state.waiting; each != null; each = each.next) {
      if (each.named != null
          && Arrays.equals(impression.id, each.named)
          && within(impression, each)) {
        own.add(each);
      }
    }
    own.sort(PairState.Waiting.BY_TIME);
    own.forEach(waiting -> attribute(state, impression, waiting));
  }

  private void onConversion(PairState state, Event event, long watermarkMs) {
    PairState.Waiting conversion = new PairState.Waiting();
    conversion.hold(event);
    conversion.named = event.named();
    conversion.kind = settings.kinds().get(event.kind());
    conversion.value = event.value();
    boolean behind = event.eventMs() <= watermarkMs;
    PairState.Impression impression = null;
    if (event.named() != null || behind) {
      impression = owner(state, conversion);
    }
    if (impression != null) {
      attribute(state, impression, conversion);
    } else if (behind) {
      late(state, event, watermarkMs);
    } else {
      state.add(conversion);
    }
  }

  /** The watermark has reached a waiting conversion: last touch, or an orphan. */
  private void resolve(PairState state, PairState.Waiting conversion) {
    PairState.Impression impression = owner(state, conversion);
    if (impression != null) {
      attribute(state, impression, conversion);
      return;
    }
    String wanted =
        conversion.named == null
            ? "at or before it"
            : "with impression_id " + text(conversion.named);
    state.remove(conversion);
    String reason =
        "impression: expected one of this user and item " + wanted + " within the window of "
            + conversion.kind + ", got none";
    output.emit(
        JoinOutput.Topic.ORPHANS,
        state.key.bytes,
        bytes(state, conversion),
        true,
        conversion.partition,
        conversion.offset,
        conversion.eventMs,
        conversion.producedMs,
        reason);
    state.drop(conversion);
    state.add(new PairState.Seen(true, conversion.id, conversion.eventMs));
  }

  /** The open impression that the conversion belongs to by the rules of attribution, or null. */
  private PairState.Impression owner(PairState state, PairState.Waiting conversion) {
    PairState.Impression owner = null;
    for (PairState.Impression open = state.open; open != null; open = open.next) {
      boolean candidate =
          conversion.named == null
              ? open.eventMs <= conversion.eventMs
                  && (owner == null
                      || open.eventMs > owner.eventMs
                      || (open.eventMs == owner.eventMs && JoinSettings.compareIds(open.id, owner.id) > 0))
              : Arrays.equals(open.id, conversion.named);
      owner = candidate ? open : owner;
    }
    return owner != null && within(owner, conversion) ? owner : null;
  }

  private boolean within(PairState.Impression impression, PairState.Waiting conversion) {
    long delayMs = conversion.eventMs - impression.eventMs;
    return delayMs >= 0 && delayMs <= conversion.kind.windowMs;
  }

  private void attribute(
      PairState state, PairState.Impression impression, PairState.Waiting conversion) {
    PairState.Label label = new PairState.Label();
    if (conversion.waits) {
      state.remove(conversion);
      state.drop(conversion);
    }
    label.kind = conversion.kind;
    label.id = conversion.id;
    label.eventMs = conversion.eventMs;
    label.producedMs = conversion.producedMs;
    label.value = conversion.value;
    output.emit(
        JoinOutput.Topic.ATTRIBUTIONS,
        conversion.id,
        writer.attribution(conversion.id, impression.id, conversion.kind),
        true,
        conversion.partition,
        conversion.offset,
        conversion.eventMs,
        conversion.producedMs,
        null);
    boolean corrects =
        settings.correct() && impression.earlyDone && !isTold(impression, label.kind);
    impression.add(label);
    if (corrects) {
      sampleCorrection(state, impression, label);
    }
  }

  private static boolean isTold(PairState.Impression impression, Kind kind) {
    for (PairState.Label label = impression.labels; label != null; label = label.next) {
      if ((label.early || label.corrected) && Arrays.equals(label.kind.name, kind.name)) {
        return true;
      }
    }
    return false;
  }

  /** What was known `elapsed` after the impression; conversions of later event times correct it. */
  private void sampleEarly(PairState state, PairState.Impression impression) {
    long knownMs = impression.eventMs + settings.elapsedMs();
    List<PairState.Label> later = impression.allLabels();
    List<PairState.Label> known = later.isEmpty() ? later : new ArrayList<>(later);
    known.removeIf(label -> label.eventMs > knownMs);
    known.forEach(label -> label.early = true);
    impression.earlyDone = true;
    sample(state, impression, known, SampleWriter.State.EARLY, settings.elapsedMs(), 0);
    if (known.size() < later.size()) {
      later.sort(PairState.Label.BY_TIME);
      for (PairState.Label label : later) {
        if (!isTold(impression, label.kind)) {
          sampleCorrection(state, impression, label);
        }
      }
    }
  }

  private void sampleCorrection(
      PairState state, PairState.Impression impression, PairState.Label label) {
    int revision = revision(impression);
    label.corrected = true;
    long elapsedMs = label.eventMs - impression.eventMs;
    sample(
        state, impression, List.of(label), SampleWriter.State.CORRECTION, elapsedMs, revision);
  }

  private void close(PairState state, PairState.Impression impression) {
    boolean sampled =
        sample(
            state,
            impression,
            impression.allLabels(),
            SampleWriter.State.FINAL,
            longestMs,
            revision(impression));
    output.countClosed(sampled);
    state.drop(impression);
    state.remove(impression);
    state.add(new PairState.Seen(false, impression.id, impression.eventMs));
    for (PairState.Label label = impression.labels; label != null; label = label.next) {
      state.add(new PairState.Seen(true, label.id, label.eventMs));
    }
  }

  /** How many samples of the impression were written so far. */
  private static int revision(PairState.Impression impression) {
    int corrections = 0;
    boolean early = impression.earlyDone && impression.kept;
    for (PairState.Label label = impression.labels; label != null; label = label.next) {
      boolean known = label.kind.position >= 0;
      early |= known && label.early;
      corrections += known && label.corrected ? 1 : 0;
    }
    return corrections + (early ? 1 : 0);
  }

  private boolean sample(
      PairState state,
      PairState.Impression impression,
      List<PairState.Label> told,
      SampleWriter.State kind,
      long elapsedMs,
      int revision) {
    if (!impression.kept && told.isEmpty()) {
      return false;
    }
    load(state, impression);
    byte[] value = writer.sample(impression, told, kind, elapsedMs, revision);
    unload(impression);
    if (value == null) {
      return false;
    }
    output.emit(
        JoinOutput.Topic.SAMPLES,
        state.key.userId(),
        value,
        false,
        impression.partition,
        impression.offset,
        writer.newestMs,
        writer.newestProducedMs,
        null);
    return true;
  }

  private void late(PairState state, Event event, long watermarkMs) {
    aside(
        JoinOutput.Topic.LATE,
        event,
        "event_ms: expected more than the watermark " + watermarkMs + ", got " + event.eventMs());
    if (watermarkMs <= retainedMs(event.eventMs())) {
      state.add(new PairState.Seen(event.conversion(), event.id(), event.eventMs()));
    }
  }

  private void aside(JoinOutput.Topic topic, Event event, String reason) {
    output.emit(
        topic,
        event.pair().bytes,
        event.payload(),
        event.conversion(),
        event.partition(),
        event.offset(),
        event.eventMs(),
        event.producedMs(),
        reason);
  }

  private static String text(byte[] id) {
    return new String(id, StandardCharsets.UTF_8);
  }

  private void load(PairState state, PairState.Held<?> event) {
    if (event.bytes == null) {
      Span payload = pairs.payload(state.key, event.place);
      event.hold(payload.bytes, payload.from, payload.length());
    }
  }

  /** What lies apart would else keep its whole page in memory. */
  private static void unload(PairState.Held<?> event) {
    if (event.isApart()) {
      event.bytes = null;
    }
  }

  private byte[] bytes(PairState state, PairState.Held<?> event) {
    load(state, event);
    int to = event.from + event.length;
    return event.from == 0 && to == event.bytes.length
        ? event.bytes
        : Arrays.copyOfRange(event.bytes, event.from, to);
  }
}
