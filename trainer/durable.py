"""The trainer's own state as records of the store (space `trainer`): safetensors and JSON.

dense      weights, buffers (permutations, precisions) and Adam's moments, safetensors
rng        torch's generator
moments    numeric slots' running moments, one after another in order of side
progress   step, version, times, source offsets, counts (JSON)
shape      what the weights were made for (JSON); another one is refused at start
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from safetensors.torch import load, save

from embedding_store.store import EmbeddingStore
from settings.config import Config
from trainer.entities import LAYOUT
from trainer.errors import StateMismatch
from trainer.moments import Moments
from trainer.slots import SIDES, Plan, Side, Slot
from trainer.step import Learner

SPACE = "trainer"
NEVER = -1


class Progress(msgspec.Struct):
    """How far the trainer is. Times are Unix milliseconds of events, never of this machine."""

    step: int = 0
    """Batches learnt from."""
    version: int = 0
    """Newest version cut; 0 = none."""
    commits_since_version: int = 0
    now_ms: int = NEVER
    """Newest event time learnt from: the clock of rows' last_touched."""
    produced_ms: int = NEVER
    """Newest produce time learnt from."""
    watermark_ms: int = NEVER
    expired_ms: int = NEVER
    """Event time at which the last finished sweep of expiry began."""
    offsets: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    """Topic (without prefix) -> partition -> offset of the next sample."""
    samples: dict[str, int] = msgspec.field(default_factory=dict)
    """State -> samples consumed."""
    rejected: int = 0
    """Records of the source that were not samples."""
    unseen_finals: int = 0
    """Finals under policy `correct` whose early sample this store never saw."""
    rows_created: dict[str, int] = msgspec.field(default_factory=dict)
    """Slot -> rows created."""


def stage_state(store: EmbeddingStore, learner: Learner, progress: Progress) -> None:
    """Stage everything above for the next commit. Equal states give equal bytes."""
    tensors = {f"weight.{name}": v.detach() for name, v in learner.model.state_dict().items()}
    for name, parameter in learner.model.named_parameters():
        for moment, value in learner.adam.state.get(parameter, {}).items():
            tensors[f"adam.{moment}.{name}"] = torch.as_tensor(value)
    store.put(SPACE, b"dense", save({k: v.cpu().contiguous() for k, v in tensors.items()}))
    store.put(SPACE, b"rng", torch.get_rng_state().numpy().tobytes())
    store.put(SPACE, b"moments", b"".join(learner.moments[side].dump() for side in SIDES))
    store.put(SPACE, b"progress", _progress_bytes(progress))


def _progress_bytes(progress: Progress) -> bytes:
    """Sorted throughout: in which order things were first met must not show."""
    ordered = msgspec.structs.replace(
        progress,
        offsets={t: dict(sorted(o.items())) for t, o in sorted(progress.offsets.items())},
        samples=dict(sorted(progress.samples.items())),
        rows_created=dict(sorted(progress.rows_created.items())),
    )
    return msgspec.json.encode(ordered)


def recover_state(store: EmbeddingStore, learner: Learner, plan: Plan, config: Config) -> Progress:
    """Put the last commit's state into `learner`; the progress of an empty store is all zero.

    Raises StateMismatch if the store was written for another model, other slots or other kinds.
    """
    shape = _shape(plan, config)
    stored_shape = store.get(SPACE, b"shape")
    if stored_shape is None:
        store.put(SPACE, b"shape", msgspec.json.encode(shape, order="sorted"))
        return Progress()
    _check_shape(msgspec.json.decode(stored_shape), shape)
    raw = {name: store.get(SPACE, name) for name in (b"dense", b"rng", b"moments", b"progress")}
    if raw[b"progress"] is None:
        return Progress()
    dense, rng, moments = raw[b"dense"], raw[b"rng"], raw[b"moments"]
    assert dense is not None and rng is not None and moments is not None
    _restore_dense(learner, load(dense))
    torch.set_rng_state(torch.frombuffer(bytearray(rng), dtype=torch.uint8))
    restore_moments(learner.moments, moments)
    return msgspec.json.decode(raw[b"progress"], type=Progress)


def restore_moments(moments: Mapping[Side, Moments], raw: bytes) -> None:
    """Take back the record `moments`."""
    for side in SIDES:
        size = len(moments[side].dump())
        moments[side].restore(raw[:size])
        raw = raw[size:]


def stored_progress(store: EmbeddingStore) -> Progress:
    """As the newest commit has it, while nothing is staged; all zero before the first."""
    raw = store.get(SPACE, b"progress")
    return Progress() if raw is None else msgspec.json.decode(raw, type=Progress)


def _restore_dense(learner: Learner, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in learner.model.state_dict().items():
            value.copy_(tensors[f"weight.{name}"])
        for name, parameter in learner.model.named_parameters():
            state = {
                key.split(".", 2)[1]: value
                for key, value in tensors.items()
                if key.startswith("adam.") and key.split(".", 2)[2] == name
            }
            if state:
                # Fresh memory of torch's own, aligned as at the first run: see `to_device`.
                learner.adam.state[parameter] = {
                    moment: torch.empty_like(value, device=learner.device).copy_(value)
                    for moment, value in state.items()
                }


def _shape(plan: Plan, config: Config) -> dict[str, object]:
    model, own = config.model, config.model.own
    shared = {"name", "embedding_dim", "first_order", "tower_dims", "cross_layers", "mix_dims"}
    return {
        "model": model.model_dump(mode="json", include=shared)
        | {"own": None if own is None else own.model_dump(mode="json")},
        "slots": {
            slot.name: {"side": slot.side, "type": slot.type, "dim": slot.dim}
            | ({"encoder": _encoder(slot)} if slot.type in ("numeric", "similarity") else {})
            for slot in plan.slots
        },
        "kinds": list(plan.tasks),
        "domains": list(plan.domains),
        "layout of entities": LAYOUT,
    }


def _encoder(slot: Slot) -> list[object]:
    """What decides which rows a number names."""
    if slot.type == "numeric" and slot.encoder == "bucket":
        return ["bucket"]
    return ["mnse", list(slot.bases), slot.bits, slot.scale, list(slot.of)]


def _check_shape(stored: dict[str, object], asked: dict[str, object]) -> None:
    differing = [name for name in asked if stored.get(name) != asked[name]]
    if differing:
        details = "; ".join(
            f"{name}: stored `{msgspec.json.encode(stored.get(name)).decode()}`, "
            f"now `{msgspec.json.encode(asked[name]).decode()}`"
            for name in differing
        )
        raise StateMismatch(
            f"the store was made by another config or release: {details}; give the config back, or "
            "learn from the log again into an empty store"
        )
