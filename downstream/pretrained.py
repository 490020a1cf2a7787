"""The upstream's mix tower as a file: what an Isomorphic Interaction Module starts from.

`headwater export DIR --weights` takes the dense weights out of a store's commit. They belong to
that commit: vectors of later versions are close to what these layers were made for, and the file
says which version that was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from topics.errors import RecordInvalid

FILE = "mix_tower.safetensors"
_STORED = "weight."
_PARTS = ("norm.", "cross.layers.", "mix.layers.", "mix.norms.", "heads.linear.")


@dataclass(frozen=True, slots=True)
class MixTower:
    """Weights by the upstream's names, and the shape they were made for."""

    wide: int
    """Width of the tower's input."""
    cross_layers: int
    mix_dims: tuple[int, ...]
    version: int
    """The newest version cut from the commit that they are of."""
    weights: Mapping[str, Tensor]


def mix_tower(
    dense: bytes, version: int, rotations: Mapping[str, Tensor] | None = None
) -> MixTower:
    """From a store's dense record (safetensors); `rotations` are `basis.user` and `basis.item`.

    Raises RecordInvalid for a model without a mix tower.
    """
    found = {
        name.removeprefix(_STORED): tensor
        for name, tensor in load(dense).items()
        if name.removeprefix(_STORED).startswith(_PARTS)
    }
    return _shaped(found | dict(rotations or {}), version)


class _Basis(msgspec.Struct, array_like=True):
    """As `trainer.basis` keeps it; what follows the rotation is not asked for."""

    keys: list[bytes]
    reference: bytes
    rotation: bytes


def rotations(records: Mapping[str, bytes | None]) -> dict[str, Tensor]:
    """Of a store's basis records by side; none where vectors are published as they are."""
    found: dict[str, Tensor] = {}
    for side, raw in records.items():
        if raw is not None:
            stored = msgspec.msgpack.decode(raw, type=_Basis)
            flat = torch.frombuffer(bytearray(stored.rotation), dtype=torch.float32)
            found[f"basis.{side}"] = flat.view(round(len(flat) ** 0.5), -1)
    return found


def save_mix_tower(tower: MixTower, directory: Path) -> Path:
    """Write it beside the exported vectors."""
    directory.mkdir(parents=True, exist_ok=True)
    path, building = directory / FILE, directory / f".{FILE}.building"
    tensors = {name: tensor.contiguous() for name, tensor in tower.weights.items()}
    building.write_bytes(save(tensors, {"version": json.dumps(tower.version)}))
    building.replace(path)
    return path


def load_mix_tower(directory: Path) -> MixTower:
    """What `save_mix_tower` wrote. Raises FileNotFoundError, RecordInvalid."""
    path = directory / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"no {FILE} in {directory}: write it by `headwater export --weights`"
        )
    try:
        with safe_open(path, "pt") as file:
            version = int((file.metadata() or {})["version"])
            return _shaped({name: file.get_tensor(name) for name in file.keys()}, version)  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise RecordInvalid(f"not an exported mix tower: {path}: {error}") from error


def _shaped(weights: Mapping[str, Tensor], version: int) -> MixTower:
    norm = weights.get("norm.weight")
    if norm is None or "mix.layers.0.weight" not in weights:
        raise RecordInvalid("expected the weights of model lfm4ads, got a model without mix tower")
    cross = sum(n.startswith("cross.layers.") and n.endswith(".weight") for n in weights)
    mix = sum(n.startswith("mix.layers.") and n.endswith(".weight") for n in weights)
    dims = tuple(int(weights[f"mix.layers.{n}.weight"].shape[0]) for n in range(mix))
    return MixTower(int(norm.shape[0]), cross, dims, version, dict(weights))
