"""The slab with vectors and optimizer state in a torch tensor per set: GPU memory, or the CPU's.

Ids are resolved on the host, where the index and the headers stay; only slots go to the device, not
rows. Rows that come in are staged in pinned memory and copied on a side stream, which the next read
of the tensors waits for. Every operation is one that rounds as IEEE 754 says, in the order of
`optimizers.py`, so on the CPU the bytes are those of the slab in memory.

The only module of the store that imports torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding_store.errors import StoreMisuse
from embedding_store.eviction import Eviction
from embedding_store.lanes import LANES
from embedding_store.row import FLAGS_WORD, HEADER_WORDS, SLOT_BITS, RowFormat, SetPlace
from embedding_store.slab import Slab, step_halves


class DeviceSlab(Slab):
    """`device` is torch's name: "cpu", "cuda", "cuda:1"."""

    def __init__(self, form: RowFormat, capacity: int, eviction: Eviction, device: str) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise StoreMisuse(f"torch finds no GPU: device=`{device}`")
        super().__init__(form, capacity, eviction)
        self._sets = {
            place.vector_word: torch.zeros(
                capacity, place.vector_words + place.spec.state_floats, device=self.device
            )
            for place in form.places.values()
        }
        self._scalars = {
            word: torch.from_numpy(hyper).to(self.device) for word, hyper in self._hyper.items()
        }
        cuda = self.device.type == "cuda"
        self._side: torch.cuda.Stream | None = None
        if cuda:
            self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @staticmethod
    def host_words(form: RowFormat) -> int:
        return min(form.words, HEADER_WORDS)

    def _put(self, slots: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        self._words[slots] = rows[:, :HEADER_WORDS]
        if self._side is None:
            self._put_sets(slots, rows)
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))  # readers of those slots
        with torch.cuda.stream(self._side):
            self._put_sets(slots, rows)

    def _put_sets(self, slots: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        at = self._sent(slots)
        for word, table in self._sets.items():
            table.index_copy_(0, at, self._sent(rows[:, word : word + table.shape[1]]))

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        whole = np.zeros((len(slots), self._form.words), np.float32)
        self.take(slots, whole)
        return whole

    def take(self, slots: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        out[:, :HEADER_WORDS] = self._words[slots]
        out.view(np.uint32)[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)
        at, end = self._sent(slots), HEADER_WORDS
        self._join_side()
        for word, table in self._sets.items():
            end = word + table.shape[1]
            out[:, word:end] = table.index_select(0, at).cpu().numpy()
        out[:, end:] = 0

    def gather(self, place: SetPlace, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.gather_tensor(place, slots).cpu().numpy()
        return vectors

    def gather_tensor(self, place: SetPlace, slots: NDArray[np.int64]) -> Tensor:
        """The set's vectors float32[N, D] on the device; zeros for -1."""
        self._join_side()
        table, none = self._sets[place.vector_word], slots < 0
        stored = table.index_select(0, self._sent(np.maximum(slots, 0)))[:, : place.vector_words]
        if place.spec.dtype == "bfloat16":
            halves = stored.contiguous().view(torch.bfloat16)
            stored = halves[:, : place.spec.dim].to(torch.float32)
        if none.any():
            stored = stored.masked_fill(self._sent(none)[:, None], 0.0)
        return stored.contiguous()

    def learn_and_update(  # noqa: PLR0917
        self,
        place: SetPlace,
        every: NDArray[np.int64],
        slots: NDArray[np.int64],
        grad: NDArray[np.float32] | Tensor,
        counts: NDArray[np.int32],
        now_s: int,
        batch: int,
    ) -> int:
        self.learn(every, counts, now_s, batch)  # headers lie here, vectors on the device
        return self.update(place, slots, grad)

    def update(
        self, place: SetPlace, slots: NDArray[np.int64], grad: NDArray[np.float32] | Tensor
    ) -> int:
        spec, table = place.spec, self._sets[place.vector_word]
        there = np.flatnonzero(slots >= 0)
        given = grad if isinstance(grad, Tensor) else self._sent(grad)
        at = self._sent(slots[there])
        if len(there) < len(slots):
            given = given.index_select(0, self._sent(there))
        self._join_side()
        block = table.index_select(0, at)
        if spec.dtype == "bfloat16":  # rounding bits are drawn on the host
            words, hyper = block.cpu().numpy().copy(), self._hyper[place.vector_word]
            everywhere, random = np.arange(len(there)), self._random(place, slots[there])
            plain = np.ascontiguousarray(given.detach().cpu().numpy())
            left = step_halves(spec, words, everywhere, 0, place.vector_words, plain, hyper, random)
            table.index_copy_(0, at, self._sent(words))
            return left
        vector, state = block[:, : spec.dim], block[:, spec.dim :]
        learn = LEARN[spec.optimizer]
        changed, finite = learn(vector, state, given.detach(), self._scalars[place.vector_word])
        table.index_copy_(0, at, torch.where(finite[:, None], changed, block))
        return len(there) - int(finite.sum())

    def _sent(self, array: NDArray[Any]) -> Tensor:
        """On the device; from pinned memory, so that the copy does not hold the host up."""
        here = torch.from_numpy(np.ascontiguousarray(array))
        if self._side is None:
            return here
        return here.pin_memory().to(self.device, non_blocking=True)

    def _join_side(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)


def _root(values: Tensor) -> Tensor:
    """Correctly rounded. On the CPU torch's own float32 root is a vector library's, which is not:
    by way of float64 it is."""
    return values.sqrt() if values.is_cuda else values.double().sqrt().float()


def _squares(grad: Tensor) -> Tensor:
    """float32[U]: in the lanes of `optimizers.py`."""
    squares, dim = grad * grad, grad.shape[1]
    lanes = torch.zeros(len(grad), LANES, device=grad.device)
    for first in range(0, dim, LANES):
        part = squares[:, first : first + LANES]
        lanes[:, : part.shape[1]] += part
    a, b, c, d, e, f, g, h = lanes.unbind(1)
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


# Each: vector [U, D], state [U, S], grad [U, D], `hyperparameters` [7]
#   -> (vector and state after the step [U, D + S], whether that is finite bool[U])


def _rowwise_adagrad(
    vector: Tensor, state: Tensor, grad: Tensor, hyper: Tensor
) -> tuple[Tensor, Tensor]:
    dim = torch.full((), float(grad.shape[1]), device=grad.device)
    total = state[:, 0] + _squares(grad) / dim
    rate = hyper[0] / (_root(total) + hyper[1])
    return torch.cat([vector - rate[:, None] * grad, total[:, None]], 1), total.isfinite()


def _sgd(vector: Tensor, state: Tensor, grad: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
    del state
    return vector - hyper[0] * grad, _squares(grad).isfinite()


def _adagrad(vector: Tensor, state: Tensor, grad: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
    total = state + grad * grad
    learnt = vector - hyper[0] * grad / (_root(total) + hyper[1])
    return torch.cat([learnt, total], 1), total.sum(1).isfinite()


def _adam(vector: Tensor, state: Tensor, grad: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
    dim = grad.shape[1]
    lr, eps, beta1, beta2 = hyper[0], hyper[1], hyper[2], hyper[3]
    before = state[:, dim : 2 * dim]
    steps = torch.clamp(state[:, 2 * dim] + 1, max=float(1 << 24))
    count = steps.to(torch.int64)
    rate = (lr.double() / (1.0 - _power(beta1.double(), count))).float()[:, None]
    root = (1.0 - _power(beta2.double(), count)).sqrt().float()[:, None]
    first = beta1 * state[:, :dim] + (1 - beta1) * grad
    second = beta2 * before + (1 - beta2) * grad * grad
    learnt = vector - rate * first / (_root(second) / root + eps)
    finite = (before + grad * grad).sum(1).isfinite()
    return torch.cat([learnt, first, second, steps[:, None]], 1), finite


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """float64[U] by squaring, as `optimizers.py` does it."""
    result = torch.ones(len(exponent), dtype=torch.float64, device=exponent.device)
    for bit in range(25):
        result = torch.where((exponent >> bit) & 1 == 1, result * base, result)
        base = base * base
    return result


def _ftrl(vector: Tensor, state: Tensor, grad: Tensor, hyper: Tensor) -> tuple[Tensor, Tensor]:
    dim = grad.shape[1]
    lr, l1, l2, beta = hyper[0], hyper[4], hyper[5], hyper[6]
    before = state[:, dim:]
    total = before + grad * grad
    root = _root(total)
    z = state[:, :dim] + (grad - (root - _root(before)) / lr * vector)
    shrunk = torch.where(z > 0, z - l1, z + l1)
    learnt = -shrunk / ((beta + root) / lr + l2)
    zero = torch.zeros((), device=grad.device)
    learnt = torch.where(z.abs() <= l1, zero, learnt)
    return torch.cat([learnt, z, total], 1), total.sum(1).isfinite()


LEARN = {
    "rowwise_adagrad": _rowwise_adagrad,
    "adagrad": _adagrad,
    "adam": _adam,
    "ftrl": _ftrl,
    "sgd": _sgd,
}
