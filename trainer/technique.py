"""Training techniques beside the model, each off by default ([technique] of the config).

ranking     BCE and the pair loss over the batch (arXiv 2403.14144)
repeats     rows of an ad shown again to the same user weigh more; a Platt head fitted on unweighted
            rows takes the bias out of what is served
position    an additive bias of the shown position, in training only
exploration uncertainty of each logit, and a score drawn from it (Thompson), logged

Counters and the log are store records, the rest are weights and buffers: all durable with the
commit, and read before they are written.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedding_store.store import EmbeddingStore
from settings.techniques import TechniqueConfig
from trainer.batch import CORRECTION, F32, Batch
from trainer.errors import TrainerError
from trainer.models.model import Output
from trainer.parts.terms import Platt, ranking_loss
from trainer.parts.uncertainty import EnsembleHeads, Laplace, standard_normals

EXPOSURES, EXPLORED = "exposures", "explored"
_COUNT = struct.Struct("<I")
_SEPARATOR = b"\x1f"


class Techniques(nn.Module):
    """What the config asks for. A part of the model for its optimizer and its durable state."""

    logged: Tensor

    def __init__(
        self,
        config: TechniqueConfig,
        store: EmbeddingStore,
        *,
        tasks: int,
        hidden_dim: int,
        calibrated: bool,
    ) -> None:
        """`calibrated`: whether labels are final, so that Platt's head may be fitted on them.

        Raises TrainerError if the config wants an uncertainty that the model cannot have.
        """
        super().__init__()
        self._config, self._store = config, store
        self.positions: nn.Embedding | None = None
        if config.positions:
            self.positions = nn.Embedding(1 + config.positions, tasks)
            nn.init.zeros_(self.positions.weight)
        bent = config.repeat_weight > 0 or config.ranking_weight > 0
        self.platt = Platt(tasks) if bent and calibrated else None
        self.uncertainty: Laplace | EnsembleHeads | None = None
        if config.explore != "none" and not hidden_dim:
            raise TrainerError("technique.explore needs a model with hidden layers")
        if config.explore == "laplace":
            self.uncertainty = Laplace(tasks, hidden_dim, config.prior_precision)
        elif config.explore == "ensemble":
            self.uncertainty = EnsembleHeads(tasks, hidden_dim, config.heads)
        if self.uncertainty is not None:
            self.register_buffer("logged", torch.zeros((), dtype=torch.int64))

    def weights(self, batch: Batch) -> F32 | None:
        """[B] 1 + c log(1 + earlier exposures of the pair), which are counted afterwards."""
        if not self._config.repeat_weight:
            return None
        keys = [u + _SEPARATOR + i for u, i in zip(batch.users, batch.items, strict=True)]
        raws = self._store.get_many(EXPOSURES, keys)
        seen = {k: _COUNT.unpack(r)[0] if r else 0 for k, r in zip(keys, raws, strict=True)}
        repeats = np.asarray([seen[k] for k in keys], np.float64)
        for b in np.flatnonzero((batch.state != CORRECTION) & (batch.mask.any(1))).tolist():
            seen[keys[b]] += 1
            self._store.put(EXPOSURES, keys[b], _COUNT.pack(seen[keys[b]]))
        return (1.0 + self._config.repeat_weight * np.log1p(repeats)).astype(np.float32)

    def biased(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits [B, T] as they are trained: with the bias of the position that it was shown at."""
        if self.positions is None:
            return logits
        known = np.where(batch.position < 0, 0, 1 + batch.position)
        index = torch.as_tensor(known, device=logits.device)
        index = index.clamp(max=self.positions.num_embeddings - 1)
        held = functional.embedding(index, self.positions.weight)
        return logits + held * (index > 0).unsqueeze(1)

    def terms(self, output: Output, batch: Batch, said: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Terms beside the weighted BCE; `said`: (positive, negative) [B, T], unweighted.

        Also lets the last layer's precision learn, which this batch's scores do not see.
        """
        positive, negative = said
        logits, hidden = output.logits, output.hidden
        terms: list[Tensor] = []
        share = self._config.ranking_weight
        if share:
            pairs = [
                ranking_loss(z, p > 0, (n > 0) & (p == 0), self._config.pairs_max)
                for z, p, n in zip(logits.T, positive.T, negative.T, strict=True)
            ]
            terms.append(share / (1.0 - share) * torch.stack(pairs).sum())
        told = ((positive + negative) > 0).float()
        if isinstance(self.uncertainty, Laplace):
            assert hidden is not None
            with torch.no_grad():
                self.uncertainty.observe(hidden, torch.sigmoid(logits), told)
        if self.platt is not None:
            terms.append(self.platt.loss(logits, (positive > 0).float(), told))
        if isinstance(self.uncertainty, EnsembleHeads):
            assert hidden is not None
            terms.append(
                self.uncertainty.loss(hidden, (positive > 0).float(), told, batch.impressions)
            )
        return terms

    def served(self, logits: Tensor) -> Tensor:
        """[B, T] calibrated, where something bends the probabilities."""
        return logits if self.platt is None else self.platt(logits)

    @torch.no_grad()
    def explore(self, output: Output, batch: Batch, own: int) -> None:
        """Log (mean, sd, served score) [T] each of the batch's first `own` rows at first sight.

        A ring of the newest `explored_kept`. The draw comes from the impression's id.
        """
        if self.uncertainty is None:
            return
        assert output.hidden is not None
        sd = self.uncertainty.deviation([h[:own] for h in output.hidden]).cpu().numpy()  # [B, T]
        mean = self.served(output.logits[:own]).cpu().numpy()
        score = mean + sd * standard_normals(batch.impressions[:own], mean.shape[1])
        record = np.stack([mean, sd, score], 1).astype("<f4")  # [B, 3, T]
        logged = int(self.logged)
        for b in np.flatnonzero(batch.state[:own] != CORRECTION).tolist():
            place = (logged % self._config.explored_kept).to_bytes(8, "big")
            self._store.put(EXPLORED, place, record[b].tobytes() + batch.impressions[b])
            logged += 1
        self.logged.fill_(logged)


def read_explored(store: EmbeddingStore, tasks: int) -> dict[str, F32]:
    """Impression -> (mean, sd, served score) float32 [3, T], of the newest that were logged."""
    width = 12 * tasks
    return {
        raw[width:].decode(): np.frombuffer(raw[:width], "<f4").reshape(3, tasks)
        for _, raw in store.scan(EXPLORED)
    }
