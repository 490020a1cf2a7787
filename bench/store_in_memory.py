"""Every row hot: look-up and row-wise Adagrad of ours, of torch, of FBGEMM and of TFRA.

growth  what a tenfold universe costs per distinct row; our own universes in turns, and beside it
        what it costs a bare gather of as many rows

What does not fit into memory beside ours is measured after ours is closed, and says so (`apart`).
"""

from __future__ import annotations

import itertools
from typing import Any

import psutil
from measuring import Part, ratio, say, spread
from peer_process import Peer, PeerAbsent
from store_hot import Ours, bare_gather
from workload import BATCHES, IDS

GROWTH_DIM = 16
CASES = ((1_000_000, 16), (10_000_000, 16), (100_000_000, 16), (1_000_000, 64), (10_000_000, 64))
CASES_QUICK = ((100_000, 16), (1_000_000, 16))
HEADLINE = 10_000_000
HEADLINE_QUICK = 1_000_000
MEMORY_SHARE_MAX = 0.9
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch_adagrad": ("torch", {"optimizer": "adagrad"}),
    "torch_sparse_adam": ("torch", {"optimizer": "sparse_adam"}),
    "fbgemm": ("fbgemm", {}),
    "tfra": ("tfra", {}),
}
"""System -> (folder under bench/peers, what its request adds)."""
Times = dict[str, list[float]]
"""System -> milliseconds per step by round."""
Growth = dict[str, dict[str, float]]
"""Two universes -> the spread of what a distinct row costs in the larger over the smaller."""


def measure(quick: bool) -> Part:
    """Keys ratio_fbgemm, ratio_tfra, growth_per_decade, memory_bytes_per_row, ..."""
    Ours(1_000, GROWTH_DIM).close()  # compiles the kernels, whose memory is not the rows'
    cases, headline = (CASES_QUICK, HEADLINE_QUICK) if quick else (CASES, HEADLINE)
    run = _Run(quick=quick, rounds=3 if quick else 5, steps=5 if quick else 20)
    by_dim = itertools.groupby(sorted(cases, key=lambda case: (case[1], case[0])), lambda c: c[1])
    growth: Growth = {}
    growth_bare: Growth = {}
    for dim, group in by_dim:
        grown, grown_bare = run.universes([universe for universe, _ in group], dim)
        if dim == GROWTH_DIM:
            growth, growth_bare = grown, grown_bare
    main = run.found[_name(headline, GROWTH_DIM)]
    summary = {f"ratio_{peer}": main[f"ratio_{peer}"]["median"] for peer in main["peers"]}
    not_run = dict(run.not_run)
    for key in ("fbgemm", "tfra"):
        not_run[f"ratio_{key}"] = not_run.get(f"{_name(headline, GROWTH_DIM)} {key}", "not here")
    summary["growth_per_decade"] = max(part["median"] for part in growth.values())
    summary["memory_bytes_per_row"] = main["memory_bytes_per_row"]
    summary["gather_limit_fraction"] = main["gather_limit_fraction"]["median"]
    detail = {
        "ms_per_step": {name: part["median"] for name, part in main["ms_per_step"].items()},
        "keys": headline,
        "ids_per_step": IDS,
        "dim": GROWTH_DIM,
        "growth_decades": growth,
        "growth_decades_of_gather": growth_bare,
        "by_universe": run.found,
    }
    return Part(summary, detail, not_run)


class _Run:
    """What was found so far, and how long each turn is."""

    def __init__(self, *, quick: bool, rounds: int, steps: int) -> None:
        self.quick, self.rounds, self.steps = quick, rounds, steps
        self.found: dict[str, dict[str, Any]] = {}
        self.not_run: dict[str, str] = {}

    def universes(self, universes: list[int], dim: int) -> tuple[Growth, Growth]:
        """Each universe beside its peers, then all of ours in turns: (growth by decade, a bare
        gather's)."""
        kept: dict[int, Ours] = {}
        bare: dict[int, list[float]] = {}
        late: dict[int, tuple[list[str], Times]] = {}
        for universe in universes:
            name = _name(universe, dim)
            needed, free = _bytes("ours", universe, dim), _bytes_free()
            if needed > free:
                self.not_run[name] = f"needs {_gb(needed)}, {_gb(free)} are free"
                continue
            gather = bare_gather(universe, dim, self.rounds, self.steps)
            kept[universe] = ours = Ours(universe, dim)
            bare[universe] = [1e6 * t / ours.unique_rows for t in gather]
            say(f"{name}: {ours.bytes_per_row:.0f} bytes a row")
            late[universe] = self._beside(ours, name, gather)
        growth = self._growth(kept)
        for universe, (peers, times) in late.items():
            self._apart(universe, dim, peers, times)
        return growth, _by_decade(bare)

    def _beside(self, ours: Ours, name: str, gather: list[float]) -> tuple[list[str], Times]:
        """Ours and the peers that fit beside it, in turns; (those that do not, our times)."""
        small = self.quick and ours.universe != HEADLINE_QUICK
        group, late = _fitting([] if small else list(PEERS), ours.universe, ours.dim)
        running = self._started(group, ours.universe, ours.dim)
        times = self._turns(ours, running)
        times_ours = {each: times[each] for each in ("ours", "ours_full")}
        self.found[name] = {
            "ms_per_step": {each: spread(taken) for each, taken in times.items()}
            | {"gather": spread(gather)},
            "ns_per_unique_row": spread([1e6 * t / ours.unique_rows for t in times["ours"]]),
            "unique_rows_per_step": ours.unique_rows,
            # Rows are read and written: two passes of what a bare gather does in one.
            "gather_limit_fraction": ratio([2 * t for t in gather], times["ours"]),
            "memory_bytes_per_row": ours.bytes_per_row,
            "peers": {},
        }
        self._tell(name, ours.universe, running, times)
        return late, times_ours

    def _apart(self, universe: int, dim: int, late: list[str], ours: Times) -> None:
        """Peers that do not fit beside ours, one after another, ours being closed."""
        name = _name(universe, dim)
        for each in late:
            needed, free = _bytes(each, universe, dim), _bytes_free()
            if needed > free:
                self.not_run[f"{name} {each}"] = f"needs {_gb(needed)}, {_gb(free)} are free"
                continue
            running = self._started([each], universe, dim)
            times = self._turns(None, running)
            self.found[name]["ms_per_step"] |= {e: spread(taken) for e, taken in times.items()}
            self._tell(name, universe, running, times | ours)
            if each in self.found[name]["peers"]:
                self.found[name]["peers"][each]["apart"] = True

    def _tell(self, name: str, universe: int, running: dict[str, Peer], times: Times) -> None:
        """Close the peers and note their ratios; one that died on the way leaves none."""
        for each, peer in running.items():
            peer.close()
            if each in times:
                against = "ours" if peer.told["mode"] == "unique" else "ours_full"
                self.found[name][f"ratio_{each}"] = ratio(times[each], times[against])
                self.found[name]["peers"][each] = {
                    **{key: peer.told[key] for key in ("version", "mode")},
                    "bytes_per_row": peer.told["resident_bytes"] / universe,
                }
        told = ", ".join(
            f"{each} {spread(taken)['median']:.1f} ms" for each, taken in times.items()
        )
        say(f"{name}: {told}")

    def _started(self, group: list[str], universe: int, dim: int) -> dict[str, Peer]:
        """The peers of `group` that run here, prepared; they load their libraries side by side."""
        name, running = _name(universe, dim), {}
        for each in group:
            try:
                running[each] = Peer(PEERS[each][0], install=not self.quick)
            except PeerAbsent as error:
                self.not_run[f"{name} {each}"] = str(error)
        request = {"keys": universe, "dim": dim, "ids": IDS, "batches": BATCHES}
        for each, peer in list(running.items()):
            try:
                peer.prepare(request | PEERS[each][1])
            except PeerAbsent as error:
                self.not_run[f"{name} {each}"] = str(error)
                running.pop(each).close()
        return running

    def _turns(self, ours: Ours | None, running: dict[str, Peer]) -> Times:
        """Milliseconds per step by round of each."""
        mine = () if ours is None else ("ours", "ours_full")
        times: Times = {each: [] for each in (*mine, *running)}
        for n in range(self.rounds):
            for each in list(times):
                try:
                    if each in mine and ours is not None:
                        times[each].append(ours.steps(each, n, self.steps))
                    else:
                        times[each].append(running[each].steps(n, self.steps))
                except PeerAbsent as error:
                    self.not_run[each] = str(error)
                    del times[each]
        return times

    def _growth(self, kept: dict[int, Ours]) -> Growth:
        """Cost per distinct row of each universe over the one before, in turns; closes them all."""
        ns: dict[int, list[float]] = {universe: [] for universe in kept}
        for n in range(self.rounds):
            for universe, ours in kept.items():
                ns[universe].append(1e6 * ours.steps("ours", n, self.steps) / ours.unique_rows)
        for universe in list(kept):
            kept.pop(universe).close()
        return _by_decade(ns)


def _by_decade(ns: dict[int, list[float]]) -> Growth:
    """`ns`: universe -> nanoseconds per distinct row by round."""
    return {
        f"{below} to {above}": ratio(ns[above], ns[below])
        for below, above in itertools.pairwise(sorted(ns))
    }


def _name(universe: int, dim: int) -> str:
    return str(universe) if dim == GROWTH_DIM else f"{universe}_d{dim}"


def _fitting(peers: list[str], universe: int, dim: int) -> tuple[list[str], list[str]]:
    """(those of `peers` that fit into memory together, those that do not)."""
    group: list[str] = []
    free = _bytes_free()
    for each in peers:
        needed = _bytes(each, universe, dim)
        if needed <= free:
            group.append(each)
            free -= needed
    return group, [each for each in peers if each not in group]


def _bytes(system: str, universe: int, dim: int) -> float:
    """What a system takes, by its bytes a row as measured."""
    per_row = {
        "ours": 4 * dim + 68,
        "torch_adagrad": 8 * dim,
        "torch_sparse_adam": 12 * dim,
        "fbgemm": 4 * dim + 4,
        "tfra": 2.6 * 4 * (dim + 1),
    }
    return universe * per_row[system] + 4e8  # a process of torch or TensorFlow


def _bytes_free() -> float:
    return MEMORY_SHARE_MAX * float(psutil.virtual_memory().available)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
