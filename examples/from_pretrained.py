"""A model of one's own from an export: vectors of one version, and the upstream's mix tower.

headwater export exported --weights
python examples/from_pretrained.py exported USER_ID ITEM_ID
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from downstream.export import from_pretrained
from downstream.pretrained import load_mix_tower
from downstream.published import Published
from downstream.transfer import IsomorphicInteraction

OWN_FIELDS = 8
"""Numbers that this model would bring itself."""


def warm_module(directory: Path) -> IsomorphicInteraction:
    """An Isomorphic Interaction Module that starts as the upstream's mix tower."""
    exported, tower = from_pretrained(directory), load_mix_tower(directory)
    dim = sum(exported[kind].vectors.shape[1] for kind in ("user", "item"))
    module = IsomorphicInteraction(
        OWN_FIELDS,
        dim,
        wide=tower.wide,
        cross_layers=tower.cross_layers,
        mix_dims=tower.mix_dims,
    )
    module.warm_start(tower.weights)
    return module


def cross_of(directory: Path, user_id: str, item_id: str) -> torch.Tensor:
    """CR' [1, C] of a pair that no one has shown yet, without own fields."""
    exported = from_pretrained(directory)
    pair = [
        exported[kind].vectors[exported[kind].ids.index(entity_id)]
        for kind, entity_id in (("user", user_id), ("item", item_id))
    ]
    vectors = torch.cat([torch.from_numpy(v.copy()) for v in pair]).unsqueeze(0)
    published = Published(vectors, torch.zeros(1), torch.zeros(1))
    with torch.no_grad():
        crossed: torch.Tensor = warm_module(directory)(torch.zeros(1, OWN_FIELDS), published)
    return crossed[:, OWN_FIELDS:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("directory", type=Path)
    options.add_argument("user_id")
    options.add_argument("item_id")
    given = options.parse_args()
    crossed = cross_of(given.directory, given.user_id, given.item_id)
    sys.stdout.write(f"{crossed.squeeze(0).tolist()}\n")


if __name__ == "__main__":
    main()
