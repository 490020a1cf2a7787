"""Progressive validation: an impression counts once, predicted at first sight, scored at `final`.

The prediction waits in the store (space `pending`) until the label is final. Scores go into sums
per task, domain and window of event time that can be added up (space `evaluation`), and the newest
scored impressions are kept as they are (space `scored`, a record per commit), from which grouped
AUC is computed exactly.
All of it is staged in the store and becomes durable with the commit that holds the learning.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from embedding_store.store import EmbeddingStore
from trainer.auc import BINS, Counts, bin_of, binned_auc, grouped_auc
from trainer.batch import F32, I64

ALL_TIME = -1
OTHER = "other"
SCORED_MAX = 2_000_000
"""Newest scored impressions kept for grouped AUC: some 60 MB with two tasks."""
_HEAD = struct.Struct("<qqddI")
_SEPARATOR = "\x1f"

CellKey = tuple[str, str, int]
"""(task, domain, window); the window is its start in event ms, or ALL_TIME."""
RawCells = dict[int, list[tuple[str, str, bytes]]]
"""window -> (task, domain, dumped sums): loaded one window at a time, a year has thousands."""


@dataclass(slots=True)
class Sums:
    """What can be added up of scored predictions."""

    samples: int = 0
    positives: int = 0
    predicted: float = 0.0
    """Sum of p."""
    logloss: float = 0.0
    histogram: Counts = field(default_factory=lambda: np.zeros((2, BINS), np.int64))
    """[negatives, positives] by bin of the logit."""

    def add(self, logits: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> None:
        """Score [n] predictions."""
        self.samples += logits.size
        self.positives += int(labels.sum())
        self.predicted += float((1.0 / (1.0 + np.exp(-logits))).sum())
        self.logloss += float((np.logaddexp(0.0, logits) - labels * logits).sum())
        bins = bin_of(logits)
        self.histogram[0] += np.bincount(bins[~labels], minlength=BINS)
        self.histogram[1] += np.bincount(bins[labels], minlength=BINS)

    def merge(self, other: Sums) -> None:
        """Add another's sums to this one."""
        self.samples += other.samples
        self.positives += other.positives
        self.predicted += other.predicted
        self.logloss += other.logloss
        self.histogram += other.histogram

    def report(self) -> dict[str, float | int | None]:
        """auc, ne, pcoc, samples, positives; None where undefined (one class only, no positive)."""
        rate = self.positives / self.samples if self.samples else 0.0
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if 0 < rate < 1 else 0.0
        return {
            "auc": binned_auc(self.histogram[1], self.histogram[0]),
            "ne": self.logloss / self.samples / entropy if entropy else None,
            "pcoc": self.predicted / self.positives if self.positives else None,
            "samples": self.samples,
            "positives": self.positives,
        }

    def dump(self) -> bytes:
        """Little-endian head, then (bin u16, negatives u32, positives u32) of bins in use."""
        used = np.flatnonzero(self.histogram.any(0))
        head = _HEAD.pack(
            self.samples, self.positives, self.predicted, self.logloss, int(used.size)
        )
        counts = self.histogram[:, used].astype("<u4")
        return head + used.astype("<u2").tobytes() + counts.tobytes()

    @staticmethod
    def load(raw: bytes) -> Sums:
        """Inverse of `dump`."""
        samples, positives, predicted, logloss, used = _HEAD.unpack_from(raw)
        sums = Sums(samples, positives, predicted, logloss)
        bins = np.frombuffer(raw, "<u2", used, _HEAD.size)
        counts = np.frombuffer(raw, "<u4", 2 * used, _HEAD.size + 2 * used)
        sums.histogram[:, bins] = counts.reshape(2, used)
        return sums


NOBODY = 0
"""In place of a forgotten user's hash."""


class Evaluation:
    """Pending predictions and mergeable sums over one store."""

    def __init__(
        self,
        store: EmbeddingStore,
        tasks: tuple[str, ...],
        domains: tuple[str, ...],
        *,
        window_ms: int,
        arm: str = "",
    ) -> None:
        """`arm` keeps the records of another model's predictions apart."""
        suffix = f".{arm}" if arm else ""
        self._pending, self._sums, self._scores, self._at = (
            f"{space}{suffix}" for space in ("pending", "evaluation", "scored", "evaluated")
        )
        self._store = store
        self._window_ms = window_ms
        newest = store.get(self._at, b"newest")
        self._newest = int(newest) if newest else ALL_TIME
        self._looked_back = False
        self._tasks = tasks
        self._domains = (OTHER, *domains)
        self._cells: dict[CellKey, Sums] = {}
        self._changed: set[CellKey] = set()
        self._entries: list[npt.NDArray[Any]] = []
        self._entry = np.dtype(
            [
                ("user", "<u8"),
                ("window", "<i8"),
                ("domain", "<u2"),
                ("mask", "u1", (len(tasks),)),
                ("label", "u1", (len(tasks),)),
                ("logit", "<f4", (len(tasks),)),
            ]
        )
        size = self._entry.itemsize
        self._kept = deque((key, len(raw) // size) for key, raw in store.scan(self._scores))
        self._kept_samples = sum(count for _, count in self._kept)
        # Without it, looking for predictions that wait would cost a read per sample under `wait`.
        self._any_pending = next(store.scan(self._pending), None) is not None

    def pending(self, impressions: Sequence[bytes]) -> list[bool]:
        """Which impressions were predicted before and wait for their final labels."""
        if not self._any_pending:
            return [False] * len(impressions)
        return [raw is not None for raw in self._store.get_many(self._pending, impressions)]

    def remember(self, impressions: Sequence[bytes], logits: F32) -> None:
        """Keep the predictions [n, T] made at first sight until `recall`."""
        self._any_pending = self._any_pending or bool(impressions)
        raw, size = logits.astype("<f4").tobytes(), 4 * logits.shape[1]
        for i, impression in enumerate(impressions):
            self._store.put(self._pending, impression, raw[i * size : (i + 1) * size])

    def recall(self, impressions: Sequence[bytes]) -> F32:
        """Take back and drop the predictions [n, T] of impressions whose final labels are here."""
        raws = self._store.get_many(self._pending, impressions)
        for impression in impressions:
            self._store.delete(self._pending, impression)
        assert None not in raws, "scored an impression that was never predicted"
        whole = np.frombuffer(b"".join(raw or b"" for raw in raws), "<f4")
        return whole.reshape(len(impressions), len(self._tasks)).astype(np.float32)

    def drop(self, impressions: Sequence[bytes]) -> None:
        """Forget predictions that wait, where there are any."""
        for impression in impressions:
            self._store.delete(self._pending, impression)

    def score(
        self,
        logits: F32,
        labels: F32,
        *,
        mask: F32,
        domain: I64,
        event_ms: I64,
        users: Sequence[bytes],
    ) -> None:
        """Score n predictions [n, T] against final labels [n, T] where mask is 1; [n] each else."""
        window = event_ms - event_ms % self._window_ms
        self._newest = max(self._newest, int(window.max()))
        places = np.unique(np.stack([domain, window], 1), axis=0)
        for d, w in places.tolist():
            here = (domain == d) & (window == w)
            for t, task in enumerate(self._tasks):
                rows = here & (mask[:, t] > 0)
                if rows.any():
                    z, y = logits[rows, t].astype(np.float64), labels[rows, t] > 0
                    self._cell((task, self._domains[d], w)).add(z, y)
                    self._cell((task, self._domains[d], ALL_TIME)).add(z, y)
        entries = np.empty(logits.shape[0], self._entry)
        entries["window"], entries["domain"] = window, domain
        entries["mask"], entries["label"], entries["logit"] = mask, labels, logits
        entries["user"] = [xxhash.xxh3_64_intdigest(user) for user in users]
        self._entries.append(entries)

    def stage(self) -> None:
        """Stage what changed since the last commit in the store."""
        for key in sorted(self._changed):
            name = _SEPARATOR.join((key[0], key[1], str(key[2])))
            self._store.put(self._sums, name.encode(), self._cells[key].dump())
        self._stage_entries()
        if self._newest != ALL_TIME:
            self._store.put(self._at, b"newest", b"%d" % self._newest)
        # Windows that event time has left behind would pile up in memory; the totals stay.
        recent = {ALL_TIME, *self._latest_windows()}
        self._cells = {k: v for k, v in self._cells.items() if k in self._changed or k[2] in recent}
        self._changed = set()

    def _stage_entries(self) -> None:
        """One record for what was scored since the last commit; the oldest make room."""
        if not self._entries:
            return
        entries = np.concatenate(self._entries)
        number = int.from_bytes(self._kept[-1][0], "big") + 1 if self._kept else 0
        key = number.to_bytes(8, "big")
        self._store.put(self._scores, key, entries.tobytes())
        self._kept.append((key, len(entries)))
        self._entries = []
        self._kept_samples += len(entries)
        while self._kept_samples > SCORED_MAX and len(self._kept) > 1:
            oldest, count = self._kept.popleft()
            self._kept_samples -= count
            self._store.delete(self._scores, oldest)

    def forget_user(self, user: bytes) -> int:
        """What was scored of the user is nobody's from now on; how many predictions that were."""
        code, many = xxhash.xxh3_64_intdigest(user), 0
        for key, raw in list(self._store.scan(self._scores)):
            entries = np.frombuffer(raw, self._entry).copy()
            own = entries["user"] == code
            if own.any():
                many += int(own.sum())
                entries["user"][own] = NOBODY
                self._store.put(self._scores, key, entries.tobytes())
        for entries in self._entries:
            own = entries["user"] == code
            many += int(own.sum())
            entries["user"][own] = NOBODY
        return many

    def totals(self) -> dict[str, dict[str, float | int | None]]:
        """task -> auc, ne, pcoc, samples, positives over everything scored so far."""
        return self._over((ALL_TIME,))

    def latest(self) -> dict[str, dict[str, float | int | None]]:
        """The same over the newest window of event time and the one before it."""
        return self._over(self._latest_windows())

    def closed_windows(self, after: int) -> Iterator[tuple[int, dict[str, Sums]]]:
        """(window, sums per task) of windows later than `after` that event time has left, in order.

        What is scored in one later, out of order, is not said again.
        """
        open_from = self._newest - self._window_ms
        windows = {key[2] for key in self._cells}
        if not self._looked_back:  # windows that an earlier process scored
            windows |= set(self._stored())
            self._looked_back = True
        for window in sorted(windows):
            if max(after, ALL_TIME) < window < open_from:
                yield window, {task: self._of_task(task, (window,)) for task in self._tasks}

    def _latest_windows(self) -> tuple[int, ...]:
        if self._newest == ALL_TIME:
            return ()
        return (self._newest, self._newest - self._window_ms)

    def _over(self, windows: tuple[int, ...]) -> dict[str, dict[str, float | int | None]]:
        return {task: self._of_task(task, windows).report() for task in self._tasks}

    def _of_task(self, task: str, windows: tuple[int, ...]) -> Sums:
        return self._merged(
            self._cell((task, domain, window), change=False)
            for domain in self._domains
            for window in windows
        )

    def report(self) -> dict[str, Any]:
        """The whole report: `overall`, `by_domain` and `by_window`, each {task: {...}} with gauc.

        Reads every stored window and user: for the end of a run, not for each commit. What is not
        staged yet is not in it.
        """
        cells = self._stored()
        entries, users = self._scored()
        total = cells.pop(ALL_TIME, [])
        every = np.ones(len(entries), bool)
        return {
            "overall": self._section(total, entries, users, every),
            "by_domain": {
                name: self._section(
                    [cell for cell in total if cell[1] == name],
                    entries,
                    users,
                    entries["domain"] == self._domains.index(name),
                )
                for name in sorted({domain for _, domain, _ in total})
            },
            "by_window": {
                str(window): self._section(
                    cells[window], entries, users, entries["window"] == window
                )
                for window in sorted(cells)
            },
        }

    def _section(
        self,
        cells: list[tuple[str, str, bytes]],
        entries: npt.NDArray[Any],
        users: I64,
        rows: npt.NDArray[np.bool_],
    ) -> dict[str, dict[str, float | int | None]]:
        section: dict[str, dict[str, float | int | None]] = {}
        entries, users = entries[rows], users[rows]
        for t, task in enumerate(self._tasks):
            sums = self._merged(Sums.load(raw) for name, _, raw in cells if name == task)
            at = entries["mask"][:, t] > 0
            gauc = grouped_auc(users[at], entries["logit"][at, t], entries["label"][at, t] > 0)
            section[task] = {**sums.report(), "gauc": gauc}
        return section

    @staticmethod
    def _merged(parts: Iterable[Sums]) -> Sums:
        merged = Sums()
        for part in parts:
            merged.merge(part)
        return merged

    def _cell(self, key: CellKey, *, change: bool = True) -> Sums:
        sums = self._cells.get(key)
        if sums is None:
            raw = self._store.get(
                self._sums, _SEPARATOR.join((key[0], key[1], str(key[2]))).encode()
            )
            sums = self._cells[key] = Sums.load(raw) if raw else Sums()
        if change:
            self._changed.add(key)
        return sums

    def _stored(self) -> RawCells:
        cells: RawCells = {}
        for key, raw in self._store.scan(self._sums):
            task, domain, window = key.decode().split(_SEPARATOR)
            cells.setdefault(int(window), []).append((task, domain, raw))
        return cells

    def _scored(self) -> tuple[npt.NDArray[Any], I64]:
        """Every kept entry [n] and the number of its user."""
        raws = [raw for _, raw in self._store.scan(self._scores)]
        entries = np.frombuffer(b"".join(raws), self._entry)
        return entries, np.unique(entries["user"], return_inverse=True)[1]
