"""The embedding store against its peers, all in one run: each figure is a ratio of turns taken by
both, round by round, one thread each.

in_memory      every row hot, against torch, FBGEMM and TFRA (here)
growth         what a tenfold universe costs per distinct row (here)
beyond_memory  a tenth of the rows hot, against LMDB and RocksDB (`store_beyond_memory.py`)
commit         what durability costs a running step (`store_commit.py`)

A peer or key that could not be measured is named under `not_run` with the reason.
"""

from __future__ import annotations

import itertools
from typing import Any

import psutil
import store_beyond_memory
import store_commit
from measuring import Part, ratio, run_benchmark, say, spread
from peer_process import Peer, PeerAbsent
from store_in_memory import Ours
from workload import BATCHES, IDS

GROWTH_DIM = 16
CASES = ((1_000_000, 16), (10_000_000, 16), (100_000_000, 16), (1_000_000, 64), (10_000_000, 64))
CASES_QUICK = ((100_000, 16), (1_000_000, 16))
HEADLINE = 10_000_000
HEADLINE_QUICK = 1_000_000
MEMORY_SHARE_MAX = 0.85
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch_adagrad": ("torch", {"optimizer": "adagrad"}),
    "torch_sparse_adam": ("torch", {"optimizer": "sparse_adam"}),
    "fbgemm": ("fbgemm", {}),
    "tfra": ("tfra", {}),
}
"""System -> (folder under bench/peers, what its request adds)."""
OTHER_PARTS = {"beyond memory": store_beyond_memory.measure, "commit": store_commit.measure}


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    Ours(1_000, GROWTH_DIM).close()  # compiles the kernels, whose memory is not the rows'
    parts = [_in_memory(quick)]
    for name, part in OTHER_PARTS.items():
        say(name)
        parts.append(part(quick))
    summary = {key: value for part in parts for key, value in part.summary.items()}
    detail = {key: value for part in parts for key, value in part.detail.items()}
    not_run = {key: why for part in parts for key, why in part.not_run.items()}
    return {
        **summary,
        **detail,
        "not_run": {key: why for key, why in not_run.items() if key not in summary},
    }


def _in_memory(quick: bool) -> Part:
    cases, headline = (CASES_QUICK, HEADLINE_QUICK) if quick else (CASES, HEADLINE)
    rounds, steps = (3, 5) if quick else (5, 20)
    not_run: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    kept: dict[int, Ours] = {}
    for universe, dim in sorted(cases, key=lambda case: (case[1], case[0])):
        name = str(universe) if dim == GROWTH_DIM else f"{universe}_d{dim}"
        if dim != GROWTH_DIM and kept:
            growth = _growth(kept, rounds, steps)
        ours = _ours(universe, dim, name, not_run)
        if ours is None:
            continue
        say(f"{universe:,} keys, D={dim}: {ours.bytes_per_row:.0f} bytes a row")
        found[name] = _case(ours, name, rounds, steps, quick=quick, not_run=not_run)
        if dim == GROWTH_DIM:
            kept[universe] = ours
        else:
            ours.close()
    if kept:
        growth = _growth(kept, rounds, steps)
    main = found[str(headline)]
    summary = {
        key: main[key]["median"]
        for key in ("ratio_fbgemm", "ratio_tfra", "ratio_torch_adagrad", "ratio_torch_sparse_adam")
        if key in main
    }
    for key in ("fbgemm", "tfra"):
        if f"ratio_{key}" not in main:
            not_run[f"ratio_{key}"] = not_run.get(f"{headline} {key}", "not measured")
    summary["growth_per_decade"] = max(part["median"] for part in growth.values())
    summary["memory_bytes_per_row"] = main["memory_bytes_per_row"]
    detail = {
        "ms_per_step": {name: part["median"] for name, part in main["ms_per_step"].items()},
        "keys": headline,
        "ids_per_step": IDS,
        "dim": GROWTH_DIM,
        "growth_decades": growth,
        "by_universe": found,
    }
    return Part(summary, detail, not_run)


def _ours(universe: int, dim: int, name: str, not_run: dict[str, str]) -> Ours | None:
    needed, free = _bytes("ours", universe, dim), _bytes_free()
    if needed > free:
        not_run[name] = f"needs {_gb(needed)}, {_gb(free)} are free"
        return None
    return Ours(universe, dim)


def _case(
    ours: Ours, name: str, rounds: int, steps: int, *, quick: bool, not_run: dict[str, str]
) -> dict[str, Any]:
    """Ours and every peer that fits, in turns; peers that do not fit at once come after others."""
    turns: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    peers: dict[str, dict[str, Any]] = {}
    waiting = [] if quick and ours.universe != HEADLINE_QUICK else list(PEERS)
    while waiting or not turns:
        group = _fitting(ours, name, waiting, not_run)
        running = _started(group, ours, name, quick=quick, not_run=not_run)
        times = _take_turns(ours, running, rounds=rounds, steps=steps, not_run=not_run)
        for each, peer in running.items():
            peer.close()
            if each in times:
                against = "ours" if peer.told["mode"] == "unique" else "ours_full"
                found[f"ratio_{each}"] = ratio(times[each], times[against])
                peers[each] = {
                    **{key: peer.told[key] for key in ("version", "mode")},
                    "bytes_per_row": peer.told["resident_bytes"] / ours.universe,
                }
        for each, taken in times.items():
            turns.setdefault(each, []).extend(taken)
    say(", ".join(f"{each} {spread(times)['median']:.1f} ms" for each, times in turns.items()))
    return {
        "ms_per_step": {each: spread(times) for each, times in turns.items()},
        **found,
        "ns_per_unique_row": spread([1e6 * t / ours.unique_rows for t in turns["ours"]]),
        "unique_rows_per_step": ours.unique_rows,
        # Rows are read and written: two passes of what a bare gather does in one.
        "gather_limit_fraction": ratio([2 * t for t in turns["gather"]], turns["ours"]),
        "memory_bytes_per_row": ours.bytes_per_row,
        "peers": peers,
    }


def _fitting(ours: Ours, name: str, waiting: list[str], not_run: dict[str, str]) -> list[str]:
    """Take peers off the head of `waiting` that fit into memory together."""
    group: list[str] = []
    free = _bytes_free()
    while waiting:
        needed = _bytes(waiting[0], ours.universe, ours.dim)
        if needed <= free:
            group.append(waiting.pop(0))
            free -= needed
        elif group:
            break
        else:
            refused = waiting.pop(0)
            not_run[f"{name} {refused}"] = f"needs {_gb(needed)} beside ours, {_gb(free)} are free"
    return group


def _started(
    group: list[str], ours: Ours, name: str, *, quick: bool, not_run: dict[str, str]
) -> dict[str, Peer]:
    """The peers of `group` that run here, prepared; they load their libraries side by side."""
    running: dict[str, Peer] = {}
    for each in group:
        try:
            running[each] = Peer(PEERS[each][0], install=not quick)
        except PeerAbsent as error:
            not_run[f"{name} {each}"] = str(error)
    request = {"keys": ours.universe, "dim": ours.dim, "ids": IDS, "batches": BATCHES}
    for each, peer in list(running.items()):
        try:
            peer.prepare(request | PEERS[each][1])
        except PeerAbsent as error:
            not_run[f"{name} {each}"] = str(error)
            running.pop(each).close()
    return running


def _take_turns(
    ours: Ours, running: dict[str, Peer], *, rounds: int, steps: int, not_run: dict[str, str]
) -> dict[str, list[float]]:
    """Milliseconds per step by round of each; one that dies on the way leaves no figure."""
    times: dict[str, list[float]] = {each: [] for each in ("ours", "ours_full", "gather", *running)}
    for n in range(rounds):
        for each in list(times):
            try:
                peer = running.get(each)
                ms = ours.steps(each, n, steps) if peer is None else peer.steps(n, steps)
            except PeerAbsent as error:
                not_run[f"{ours.universe} {each}"] = str(error)
                del times[each]
            else:
                times[each].append(ms)
    return times


def _growth(kept: dict[int, Ours], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Cost per distinct row of each universe over the one before, in turns; closes them all."""
    ns: dict[int, list[float]] = {universe: [] for universe in kept}
    for n in range(rounds):
        for universe, ours in kept.items():
            ns[universe].append(1e6 * ours.steps("ours", n, steps) / ours.unique_rows)
    for ours in kept.values():
        ours.close()
    kept.clear()
    universes = sorted(ns)
    return {
        f"{below} to {above}": ratio(ns[above], ns[below])
        for below, above in itertools.pairwise(universes)
    }


def _bytes(system: str, universe: int, dim: int) -> float:
    """What a system takes, by its bytes a row as measured."""
    per_row = {
        "ours": 8 * dim + 72,  # with the bare table that gives the limit
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


if __name__ == "__main__":
    run_benchmark("store", measure)
