package dev.headwater.join;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/**
 * The verdicts of one (user, item) pair, as a state machine that knows neither Flink nor Kafka.
 *
 * <p>Everything that waits for the watermark is done in order of event time, whatever the watermark's
 * steps: at a time t first waiting conversions, then early samples, then closing impressions. So the
 * outcome depends on the events and on the watermark at each arrival, never on when timers fire.
 */
final class PairJoin {
  /** Larger payloads are kept apart, so that they are not rewritten at each touch of the pair. */
  private static final int INLINE_BYTES_MAX = 1024;

  private static final int INLINE_ENTRIES_MAX = 4;

  private final JoinSettings settings;
  private final long longestMs;
  private final JoinOutput output;

  PairJoin(JoinSettings settings, JoinOutput output) {
    this.settings = settings;
    this.longestMs = settings.longestWindowMs();
    this.output = output;
  }

  /** Judges `event`, which arrives when the operator's watermark is `watermarkMs`. */
  void onEvent(PairState state, Event event, long watermarkMs) {
    onWatermark(state, watermarkMs);
    if (state.isEmpty()) {
      state.userId = event.userId();
      state.itemId = event.itemId();
    }
    if (isDuplicate(state, event)) {
      aside(JoinOutput.Topic.DUPLICATES, event, "id: expected one not seen before, got " + event.id());
    } else if (event.conversion()) {
      onConversion(state, event, watermarkMs);
    } else {
      onImpression(state, event, watermarkMs);
    }
  }

  /** Does all that is due once event time has reached `watermarkMs`. */
  void onWatermark(PairState state, long watermarkMs) {
    while (true) {
      PairState.Waiting conversion = firstWaiting(state);
      PairState.Impression early = firstEarly(state);
      PairState.Impression closing = firstOpen(state);
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
    state.seen.removeIf(seen -> watermarkMs > retainedMs(seen));
  }

  /** The next event time at which something is due, or {@link PairState#NO_TIMER}. */
  long nextDueMs(PairState state) {
    long due = PairState.NO_TIMER;
    for (PairState.Waiting waiting : state.waiting) {
      due = Math.min(due, waiting.eventMs);
    }
    for (PairState.Impression open : state.open) {
      boolean awaitsEarly = settings.correct() && !open.earlyDone;
      due = Math.min(due, open.eventMs + (awaitsEarly ? settings.elapsedMs() : longestMs));
    }
    for (PairState.Seen seen : state.seen) {
      due = Math.min(due, retainedMs(seen) + 1);
    }
    return due;
  }

  private long retainedMs(PairState.Seen seen) {
    return seen.eventMs() + longestMs + settings.latenessMs();
  }

  private static boolean isDuplicate(PairState state, Event event) {
    for (PairState.Seen seen : state.seen) {
      if (seen.conversion() == event.conversion() && seen.id().equals(event.id())) {
        return true;
      }
    }
    if (event.conversion()) {
      return state.waiting.stream().anyMatch(waiting -> waiting.id.equals(event.id()));
    }
    return state.open.stream().anyMatch(open -> open.id.equals(event.id()));
  }

  private void onImpression(PairState state, Event event, long watermarkMs) {
    if (event.eventMs() <= watermarkMs) {
      late(state, event, watermarkMs);
      return;
    }
    PairState.Impression impression = new PairState.Impression();
    impression.id = event.id();
    impression.eventMs = event.eventMs();
    impression.producedMs = event.producedMs();
    impression.partition = event.partition();
    impression.offset = event.offset();
    impression.payload = keep(state, event.payload());
    impression.newestEventMs = event.eventMs();
    impression.newestProducedMs = event.producedMs();
    state.open.add(impression);
    List<PairState.Waiting> own = new ArrayList<>(0);
    for (PairState.Waiting waiting : state.waiting) {
      if (event.id().equals(waiting.named) && within(impression, waiting)) {
        own.add(waiting);
      }
    }
    own.sort(PairJoin::byTime);
    own.forEach(waiting -> attribute(state, impression, waiting));
    if (settings.correct() && settings.elapsedMs() == 0) {
      sampleEarly(state, impression);
    }
  }

  private void onConversion(PairState state, Event event, long watermarkMs) {
    PairState.Waiting conversion = new PairState.Waiting();
    conversion.id = event.id();
    conversion.named = event.named();
    conversion.kind = event.kind();
    conversion.eventMs = event.eventMs();
    conversion.producedMs = event.producedMs();
    conversion.partition = event.partition();
    conversion.offset = event.offset();
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
      conversion.payload = keep(state, event.payload());
      state.waiting.add(conversion);
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
        conversion.named == null ? "at or before it" : "with impression_id " + conversion.named;
    state.waiting.remove(conversion);
    JoinOutput.About about =
        new JoinOutput.About(
            true,
            conversion.partition,
            conversion.offset,
            conversion.eventMs,
            conversion.producedMs);
    String reason =
        "impression: expected one of this user and item " + wanted + " within the window of "
            + conversion.kind + ", got none";
    output.emit(
        JoinOutput.Topic.ORPHANS, pairKey(state), take(conversion.payload), about, reason);
    state.seen.add(new PairState.Seen(true, conversion.id, conversion.eventMs));
  }

  /** The open impression that the conversion belongs to by the rules of attribution, or null. */
  private PairState.Impression owner(PairState state, PairState.Waiting conversion) {
    PairState.Impression owner = null;
    for (PairState.Impression open : state.open) {
      boolean candidate =
          conversion.named == null
              ? open.eventMs <= conversion.eventMs
                  && (owner == null
                      || open.eventMs > owner.eventMs
                      || (open.eventMs == owner.eventMs && PairState.compareIds(open.id, owner.id) > 0))
              : open.id.equals(conversion.named);
      owner = candidate ? open : owner;
    }
    return owner != null && within(owner, conversion) ? owner : null;
  }

  private boolean within(PairState.Impression impression, PairState.Waiting conversion) {
    long delayMs = conversion.eventMs - impression.eventMs;
    Long windowMs = settings.windowMsByKind().get(conversion.kind);
    return windowMs != null && delayMs >= 0 && delayMs <= windowMs;
  }

  private void attribute(
      PairState state, PairState.Impression impression, PairState.Waiting conversion) {
    if (state.waiting.remove(conversion)) {
      take(conversion.payload);
    }
    state.seen.add(new PairState.Seen(true, conversion.id, conversion.eventMs));
    output.emit(
        JoinOutput.Topic.ATTRIBUTIONS,
        conversion.id.getBytes(StandardCharsets.UTF_8),
        Json.attribution(conversion.id, impression.id, conversion.kind),
        new JoinOutput.About(
            true,
            conversion.partition,
            conversion.offset,
            conversion.eventMs,
            conversion.producedMs),
        null);
    if (conversion.eventMs >= impression.newestEventMs) {
      impression.newestEventMs = conversion.eventMs;
      impression.newestProducedMs = conversion.producedMs;
    }
    PairState.Label label = label(impression, conversion);
    if (settings.correct() && impression.earlyDone && !label.told) {
      sampleCorrection(state, impression, label);
    }
  }

  /** Enters the conversion as its kind's label unless an earlier one already is. */
  private static PairState.Label label(
      PairState.Impression impression, PairState.Waiting conversion) {
    PairState.Label label = new PairState.Label();
    label.kind = conversion.kind;
    label.conversionId = conversion.id;
    label.eventMs = conversion.eventMs;
    label.producedMs = conversion.producedMs;
    label.value = conversion.value;
    for (int i = 0; i < impression.labels.size(); i++) {
      PairState.Label known = impression.labels.get(i);
      if (known.kind.equals(label.kind)) {
        if (PairState.Label.BY_TIME.compare(label, known) < 0) {
          label.told = known.told;
          impression.labels.set(i, label);
          return label;
        }
        return known;
      }
    }
    impression.labels.add(label);
    return label;
  }

  /** What was known `elapsed` after the impression; conversions of later event times correct it. */
  private void sampleEarly(PairState state, PairState.Impression impression) {
    long knownMs = impression.eventMs + settings.elapsedMs();
    List<PairState.Label> known = new ArrayList<>(0);
    long eventMs = impression.eventMs;
    long producedMs = impression.producedMs;
    for (PairState.Label label : impression.labels) {
      if (label.eventMs <= knownMs) {
        known.add(label);
        label.told = true;
        if (label.eventMs >= eventMs) {
          eventMs = label.eventMs;
          producedMs = label.producedMs;
        }
      }
    }
    sample(
        state,
        impression,
        new Emission("early", settings.elapsedMs(), eventMs, producedMs),
        settings.windowMsByKind().keySet(),
        known);
    impression.earlyDone = true;
    impression.labels.sort(PairState.Label.BY_TIME);
    for (PairState.Label label : impression.labels) {
      if (!label.told) {
        sampleCorrection(state, impression, label);
      }
    }
  }

  private void sampleCorrection(
      PairState state, PairState.Impression impression, PairState.Label label) {
    label.told = true;
    sample(
        state,
        impression,
        new Emission(
            "correction", label.eventMs - impression.eventMs, label.eventMs, label.producedMs),
        Set.of(label.kind),
        List.of(label));
  }

  private void close(PairState state, PairState.Impression impression) {
    sample(
        state,
        impression,
        new Emission(
            "final", longestMs, impression.newestEventMs, impression.newestProducedMs),
        settings.windowMsByKind().keySet(),
        impression.labels);
    output.countSampled();
    take(impression.payload);
    state.open.remove(impression);
    state.seen.add(new PairState.Seen(false, impression.id, impression.eventMs));
  }

  /** State name, elapsed time, and the times of the newest event in a sample's information. */
  private record Emission(String state, long elapsedMs, long eventMs, long producedMs) {}

  private void sample(
      PairState state,
      PairState.Impression impression,
      Emission emission,
      Set<String> kinds,
      List<PairState.Label> positive) {
    byte[] value =
        Json.sample(
            impression,
            payload(impression.payload),
            kinds,
            positive,
            emission.state(),
            emission.elapsedMs(),
            emission.producedMs());
    impression.revisions++;
    output.emit(
        JoinOutput.Topic.SAMPLES,
        state.userId.getBytes(StandardCharsets.UTF_8),
        value,
        new JoinOutput.About(
            false,
            impression.partition,
            impression.offset,
            emission.eventMs(),
            emission.producedMs()),
        null);
  }

  private void late(PairState state, Event event, long watermarkMs) {
    aside(
        JoinOutput.Topic.LATE,
        event,
        "event_ms: expected more than the watermark " + watermarkMs + ", got " + event.eventMs());
    PairState.Seen seen = new PairState.Seen(event.conversion(), event.id(), event.eventMs());
    if (watermarkMs <= retainedMs(seen)) {
      state.seen.add(seen);
    }
  }

  private void aside(JoinOutput.Topic topic, Event event, String reason) {
    byte[] key = (event.userId() + '\u001f' + event.itemId()).getBytes(StandardCharsets.UTF_8);
    output.emit(
        topic,
        key,
        event.payload(),
        new JoinOutput.About(
            event.conversion(),
            event.partition(),
            event.offset(),
            event.eventMs(),
            event.producedMs()),
        reason);
  }

  private static byte[] pairKey(PairState state) {
    return (state.userId + '\u001f' + state.itemId).getBytes(StandardCharsets.UTF_8);
  }

  private PairState.Payload keep(PairState state, byte[] payload) {
    boolean few = state.open.size() + state.waiting.size() < INLINE_ENTRIES_MAX;
    if (few && payload.length <= INLINE_BYTES_MAX) {
      return new PairState.Payload(payload, 0);
    }
    long number = state.payloadNext++;
    output.keep(number, payload);
    return new PairState.Payload(null, number);
  }

  private byte[] payload(PairState.Payload payload) {
    return payload.inline() != null ? payload.inline() : output.load(payload.number());
  }

  /** The payload, which is forgotten. */
  private byte[] take(PairState.Payload payload) {
    byte[] bytes = payload(payload);
    if (payload.inline() == null) {
      output.drop(payload.number());
    }
    return bytes;
  }

  private static PairState.Waiting first(PairState.Waiting a, PairState.Waiting b) {
    return a == null || byTime(b, a) < 0 ? b : a;
  }

  private static int byTime(PairState.Waiting a, PairState.Waiting b) {
    int order = Long.compare(a.eventMs, b.eventMs);
    return order != 0 ? order : PairState.compareIds(a.id, b.id);
  }

  private static PairState.Waiting firstWaiting(PairState state) {
    PairState.Waiting first = null;
    for (PairState.Waiting waiting : state.waiting) {
      first = first(first, waiting);
    }
    return first;
  }

  private PairState.Impression firstEarly(PairState state) {
    if (!settings.correct()) {
      return null;
    }
    PairState.Impression first = null;
    for (PairState.Impression open : state.open) {
      first = open.earlyDone ? first : earlier(first, open);
    }
    return first;
  }

  private static PairState.Impression firstOpen(PairState state) {
    PairState.Impression first = null;
    for (PairState.Impression open : state.open) {
      first = earlier(first, open);
    }
    return first;
  }

  private static PairState.Impression earlier(PairState.Impression a, PairState.Impression b) {
    if (a == null || b.eventMs < a.eventMs) {
      return b;
    }
    return b.eventMs == a.eventMs && PairState.compareIds(b.id, a.id) < 0 ? b : a;
  }
}
