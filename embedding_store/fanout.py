"""From a batch's U distinct keys to its N ids and back: rows spread out, gradients summed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import StoreMisuse
from embedding_store.kernel import kernel
from embedding_store.lanes import add_floats, copy_floats


def expand(vectors: NDArray[np.float32], inverse: NDArray[np.int32]) -> NDArray[np.float32]:
    """float32[U, D], int32[N] -> float32[N, D]: `vectors[inverse]`."""
    each = np.empty((len(inverse), vectors.shape[1]), np.float32)
    _expand(vectors, inverse, each)
    return each


def reduce(
    grad: NDArray[np.float32], inverse: NDArray[np.int32], unique: int
) -> NDArray[np.float32]:
    """float32[N, D], int32[N] -> float32[U, D]: the sum per distinct key, in order of the ids.

    `inverse` is a lookup's: positions appear for the first time in ascending order.
    """
    check_gradient(grad, (len(inverse), grad.shape[-1]), "any")
    summed = np.empty((unique, grad.shape[1]), np.float32)
    _reduce(np.ascontiguousarray(grad), inverse, summed)
    return summed


def check_gradient(grad: Any, shape: tuple[int, int], set_name: str) -> None:
    """Raises StoreMisuse unless an array of numpy, or a tensor of torch, is float32[shape]."""
    if tuple(grad.shape) != shape or not str(grad.dtype).endswith("float32"):
        raise StoreMisuse(
            f"a gradient of another shape or type: set=`{set_name}` "
            f"expected=`float32{list(shape)}` came=`{grad.dtype}{list(grad.shape)}`"
        )


@kernel
def _expand(vectors, inverse, each) -> None:  # type: ignore[no-untyped-def]
    dim = np.uint64(each.shape[1])
    source, into = vectors.reshape(-1), each.reshape(-1)
    for i in range(inverse.shape[0]):
        at, to = np.uint64(inverse[i]) * dim, np.uint64(i) * dim
        copy_floats(into, to, source, at, dim)


@kernel
def _reduce(grad, inverse, summed) -> None:  # type: ignore[no-untyped-def]
    dim = np.uint64(summed.shape[1])
    source, into = grad.reshape(-1), summed.reshape(-1)
    seen = 0
    for i in range(inverse.shape[0]):
        at, to = np.uint64(i) * dim, np.uint64(inverse[i]) * dim
        if inverse[i] == seen:  # its first id: nothing to add to, and nothing was zeroed
            seen += 1
            copy_floats(into, to, source, at, dim)
        else:
            add_floats(into, to, source, at, dim)
