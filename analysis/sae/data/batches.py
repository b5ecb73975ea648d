"""What an SAE trains on: float32 rows in batches, endless, resumable to the row, and with a note of what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.tensors import dtype_name

if TYPE_CHECKING:
    import torch

__all__ = ["ArrayBatches", "Batches", "data_hash", "float_rows", "require_batch_size", "require_seed", "take_state"]


_ROWS_AT_ONCE = 256


class Batches(Protocol):
    """An endless iterator of [batch_size, d_in] float32 tensors on the CPU. Nobody else holds their memory.

    `load_state_dict(state_dict())` on a fresh object over the same data goes on with the very batch that would have
    come next. A state of other data, another batch size or another seed is refused with FailedPrecondition.
    """

    @property
    def d_in(self) -> int:
        """Width of a row."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows of every batch."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the data is, JSON-able: at least "kind", "data_hash", "d_in", and "model_hash" and "site" where known."""
        ...

    def __iter__(self) -> Self: ...

    def __next__(self) -> torch.Tensor: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, JSON-able."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another iteration stood. Raises FailedPrecondition when it was not over the same batches."""
        ...


class ArrayBatches:
    """Batches of an array in memory, [row, d_in]: every row once an epoch, in an order that seed and epoch give.

    A batch may straddle two epochs, so all have `batch_size` rows and none is lost. `shuffle=False`: in order.
    Raises InvalidArgument for an array that is not 2-D, is empty, or holds NaN or infinity.
    """

    def __init__(
        self,
        array: NDArray[Any] | torch.Tensor,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        tensor: Any = array
        found = np.asarray(tensor.detach().cpu().float().numpy() if hasattr(tensor, "detach") else tensor)
        if found.ndim != 2 or not found.size:
            raise InvalidArgument(f"rows to train on are an array [row, d_in], got shape {list(found.shape)}")
        self._rows = np.ascontiguousarray(found, dtype=np.float32)
        if not np.isfinite(self._rows).all():
            bad = int((~np.isfinite(self._rows).all(axis=1)).sum())
            raise InvalidArgument(f"{bad} of {len(found)} rows hold NaN or infinity; drop or mend them first")
        self.batch_size = require_batch_size(batch_size)
        self.d_in = int(found.shape[1])
        self.seed, self.shuffle = require_seed(seed), bool(shuffle)
        self.manifest: Mapping[str, Any] = {
            **(manifest or {}),
            "kind": "array",
            "data_hash": data_hash(self._rows),
            "d_in": self.d_in,
            "n_tokens": len(self._rows),
        }
        self._epoch, self._row = 0, 0
        self._order = self._epoch_order()

    def _epoch_order(self) -> NDArray[np.intp]:
        if not self.shuffle:
            return np.arange(len(self._rows))
        return np.random.default_rng([self.seed, self._epoch]).permutation(len(self._rows))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        out = np.empty((self.batch_size, self.d_in), dtype=np.float32)
        filled = 0
        while filled < self.batch_size:
            if self._row == len(self._rows):
                self._epoch, self._row = self._epoch + 1, 0
                self._order = self._epoch_order()
            taken = self._order[self._row : self._row + self.batch_size - filled]
            out[filled : filled + len(taken)] = self._rows[taken]
            filled += len(taken)
            self._row += len(taken)
        torch_: Any = import_module("torch")
        return torch_.from_numpy(out)

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "array",
            "data_hash": self.manifest["data_hash"],
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def state_dict(self) -> dict[str, Any]:
        """As the protocol says."""
        return {**self._identity(), "epoch": self._epoch, "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the protocol says."""
        epoch, row = take_state(state, self._identity(), ("epoch", "row"))
        if not 0 <= row <= len(self._rows) or epoch < 0:
            raise FailedPrecondition(f"the state stands at row {row} of epoch {epoch}; the array has {len(self._rows)}")
        self._epoch, self._row = epoch, row
        self._order = self._epoch_order()


def take_state(state: Mapping[str, Any], identity: Mapping[str, Any], counters: tuple[str, ...]) -> tuple[int, ...]:
    """The counters of a state, once it is known to be of the same batches. Raises FailedPrecondition."""
    wrong = [f"{key} {state.get(key)!r} (here {value!r})" for key, value in identity.items() if state.get(key) != value]
    if wrong:
        raise FailedPrecondition(
            f"the state is of other batches: {', '.join(wrong)}; resume with the data and options that it was saved with"
        )
    values = [state.get(name) for name in counters]
    if not all(type(value) is int for value in values):
        raise FailedPrecondition(f"the state lacks {', '.join(counters)}; give what state_dict() gave")
    return tuple(int(value) for value in values if value is not None)


def require_batch_size(batch_size: int) -> int:
    """The batch size, once it is a positive whole number. Raises InvalidArgument."""
    if type(batch_size) is not int or batch_size < 1:
        raise InvalidArgument(f"batch_size is a whole number of rows, 1 or more; got {batch_size!r}")
    return batch_size


def require_seed(seed: int) -> int:
    """The seed, once it is a whole number of 0 or more. Raises InvalidArgument."""
    if type(seed) is not int or seed < 0:
        raise InvalidArgument(f"seed is a whole number of 0 or more; got {seed!r}")
    return seed


def data_hash(rows: NDArray[Any]) -> str:
    """SHA-256 over dtype, shape and values of an array."""
    digest = hashlib.sha256(f"{rows.dtype} {list(rows.shape)}".encode())
    digest.update(np.ascontiguousarray(rows).view(np.uint8).data)
    return digest.hexdigest()


def float_rows(rows: NDArray[Any], chosen: NDArray[np.intp]) -> torch.Tensor:
    """Some rows of [row, d_in] in any float dtype, copied into a float32 tensor.

    bfloat16 is the upper half of float32, so it is widened by a shift, a few rows at a time while they are in the
    cache. numpy does it in the caller's thread; torch's thread pool would wait for cores that training uses.
    """
    torch_: Any = import_module("torch")
    if dtype_name(rows.dtype) != "bfloat16":
        return torch_.from_numpy(rows.take(chosen, axis=0).astype(np.float32, copy=False))
    halves = rows.view(np.uint16)
    out = np.empty((len(chosen), rows.shape[1]), dtype=np.uint32)
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        np.left_shift(halves.take(chosen[some], axis=0), 16, out=out[some], dtype=np.uint32)
    return torch_.from_numpy(out.view(np.float32))
