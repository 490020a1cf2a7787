"""Made-up events of many pairs: shuffled, doubled, equal times, odd ids, all edges of a window."""

from __future__ import annotations

import json
import random
from typing import Any

from topics.event import event_key

START_MS = 1_600_000_000_000
WINDOWS_MS = {"click": 60_000, "buy": 3_600_000}
LONGEST_MS = 3_600_000
Event = dict[str, Any]

_ODD = ("", "é", '"', "\\", "\u2028", "😀", "\t", " ")


def stories(random_: random.Random, pairs: int) -> tuple[list[Event], list[Event]]:
    """Events of `pairs` pairs, impressions and conversions, in no order, some of them twice."""
    impressions: list[Event] = []
    conversions: list[Event] = []
    for pair in range(pairs):
        odd = random_.choice(_ODD)
        own = {"user_id": f"u{pair % 97}{odd}", "item_id": f"i{pair}"}
        first_ms = START_MS + random_.randrange(20) * 60_000
        names = []
        for number in range(random_.choice((0, 1, 1, 1, 2, 3, 6))):
            names.append(f"p{pair}-{number}{random_.choice(_ODD)}")
            features: Event = {"os": "ios", "age": random_.random(), "seen": [{"item_id": "x"}]}
            if random_.random() < 0.05:
                features["large"] = "é" * 3000  # kept apart from the rest of the state
            impressions.append(
                {
                    "impression_id": names[-1],
                    "event_ms": first_ms + random_.choice((0, 0, 1, 30_000, 60_000)),
                    **own,
                    "domain": "feed",
                    "features": features,
                    "request_id": number,
                }
            )
        for number in range(random_.choice((0, 1, 1, 2, 4))):
            kind = random_.choice(list(WINDOWS_MS))
            window_ms = WINDOWS_MS[kind]
            delay_ms = random_.choice((-1, 0, 1, 30_000, 60_000, window_ms, window_ms + 1))
            named = random_.choice([None, "stranger", *names, *names])
            value = random_.choice((None, 1, 2.5, -3e-7))
            conversions.append(
                {
                    "conversion_id": f"c{pair}-{number}{odd}",
                    "impression_id": named,
                    "event_ms": first_ms + delay_ms,
                    **own,
                    "kind": kind,
                    "value": value,
                }
            )
    for events in (impressions, conversions):
        events += [dict(event) for event in random_.sample(events, len(events) // 20)]
        random_.shuffle(events)
    return impressions, conversions


def encoded(random_: random.Random, event: Event) -> tuple[bytes, bytes]:
    """(key, value) with keys in any order, any white space, escaped or plain UTF-8."""
    items = list(event.items())
    random_.shuffle(items)
    spacing = random_.choice(((",", ":"), (", ", ": "), (" ,\t", " :\r ")))
    text = json.dumps(dict(items), ensure_ascii=random_.random() < 0.5, separators=spacing)
    return event_key(event["user_id"], event["item_id"]), (
        text + random_.choice(("", " "))
    ).encode()


def bad_events(impression: Event, conversion: Event) -> dict[str, list[tuple[bytes | None, str]]]:
    """Per stream: (bytes that are no event, the beginning of the reason)."""

    def dump(event: Event, **changes: Any) -> bytes:
        return json.dumps(event | changes).encode()

    def lacking(event: Event, name: str) -> bytes:
        return json.dumps({k: v for k, v in event.items() if k != name}).encode()

    good, sold = dump(impression), dump(conversion)
    ahead_ms = 4_070_908_800_000  # the year 2099
    return {
        "impressions": [
            (None, "json: expected an object, got no bytes"),
            (b"", "json: expected an object, got the end"),
            (b"\xff\xfe\x00", "json: expected an object"),
            (good[:-1], "json: expected '}'"),
            (good + b"{}", "json: expected nothing after"),
            (b"\xef\xbb\xbf" + good, "json: expected an object"),
            (good.replace(b'"feed"', b'"\xc3"'), "json: expected utf-8"),
            (good.replace(b'"feed"', b'"\xed\xa0\x80"'), "json: expected utf-8"),
            (good.replace(b'"feed"', b'"\\ud800"'), "json: expected paired surrogates"),
            (good.replace(b'"feed"', b'"a\nb"'), "json: expected no control"),
            (dump(impression, features={"a": float("nan")}), "json: expected a value, got NaN"),
            (dump(impression, features={"a": float("inf")}), "json: expected a value, got Inf"),
            (good.replace(b'"age": ', b'"age": 1e999, "b": '), "json: expected a finite number"),
            (good.replace(b'"age": ', b'"age": 01, "b": '), "json: expected"),
            (dump(impression, features=[]), "features: expected an object, got []"),
            (dump(impression, features=None), "features: expected an object, got null"),
            (dump(impression, domain=7), "domain: expected a string, got 7"),
            (dump(impression, user_id=""), "user_id: expected a non-empty string, got an empty"),
            (dump(impression, item_id=5), "item_id: expected a non-empty string, got 5"),
            (dump(impression, event_ms=-1), "event_ms: expected milliseconds"),
            (dump(impression, event_ms=1.5), "event_ms: expected milliseconds"),
            (dump(impression, event_ms="1"), "event_ms: expected milliseconds"),
            (dump(impression, event_ms=2**63), "event_ms: expected milliseconds"),
            (dump(impression, labels={}), "labels: expected no field that the join itself"),
            (good[:-1] + b', "user_id": "u"}', "user_id: expected once, got it twice"),
            (good[:-1] + b', "\\u0075ser_id": "u"}', "user_id: expected once, got it twice"),
            (b"[" * 200 + b"]" * 200, "json: expected an object"),
            (good[:-1] + b', "deep": ' + b"[" * 200 + b"]" * 200 + b"}", "json: expected at most"),
            *((lacking(impression, k), f"{k}: expected") for k in impression if k != "request_id"),
            (dump(impression, event_ms=ahead_ms), "event_ms: expected at most"),
        ],
        "conversions": [
            (b"nonsense", "json: expected an object, got nonsense"),
            (dump(conversion, kind="sale"), "kind: expected one of buy, click, got sale"),
            (dump(conversion, kind=None), "kind: expected a string, got null"),
            (dump(conversion, value="3"), "value: expected a finite number or null"),
            (dump(conversion, value=float("nan")), "value: expected a finite number or null"),
            (sold[:-1] + b', "value": 1}', "value: expected once, got it twice"),
            (dump(conversion, impression_id=3), "impression_id: expected a non-empty string or"),
            (dump(conversion, conversion_id=""), "conversion_id: expected a non-empty string"),
            *((lacking(conversion, k), f"{k}: expected") for k in ("conversion_id", "kind")),
            (dump(conversion, event_ms=ahead_ms), "event_ms: expected at most"),
        ],
    }
