"""How much the store's proofs run: one set of knobs for all of them.

HEADWATER_PROVE=1           the long counts (`make prove`)
HEADWATER_STORE_KILLS=N     kills of each kill loop
HEADWATER_STORE_EXAMPLES=N  sequences of the state machines, and damaged bits per kind of file
HEADWATER_STORE_SEED=N      of every draw; a failing test prints it
"""

from __future__ import annotations

import os

PROVE = os.environ.get("HEADWATER_PROVE") == "1"
SEED = int(os.environ.get("HEADWATER_STORE_SEED", "7"))


def kills(cut: int, prove: int) -> int:
    """Kills of one loop: `cut` in `make test`, `prove` in `make prove`."""
    return int(os.environ.get("HEADWATER_STORE_KILLS", prove if PROVE else cut))


def examples(cut: int, prove: int) -> int:
    """Likewise of sequences, or damaged bits."""
    return int(os.environ.get("HEADWATER_STORE_EXAMPLES", prove if PROVE else cut))
