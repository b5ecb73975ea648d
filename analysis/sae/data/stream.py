"""The batches of a training, checked, with a look ahead that takes nothing from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ....protos.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from .batches import Batches

__all__ = ["Stream"]


class Stream:
    """Batches one by one, and the state of the data after each."""

    def __init__(self, batches: Batches, batch_size: int) -> None:
        """Raises InvalidArgument when the batches are of another size."""
        if batches.batch_size != batch_size:
            raise InvalidArgument(
                f"the batches have {batches.batch_size} rows and the config says batch_size {batch_size}; make them equal"
            )
        self._batches = batches
        self._torch: Any = import_module("torch")
        self._ahead: deque[tuple[Any, dict[str, Any]]] = deque()
        self._state: dict[str, Any] | None = None
        self._step = 0

    @property
    def state(self) -> dict[str, Any]:
        """Of the data, such that the next batch is that of the next step."""
        return self._batches.state_dict() if self._state is None else self._state

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on after `step` steps. Raises FailedPrecondition for a state of other data."""
        self._batches.load_state_dict(state)
        self._ahead.clear()
        self._state, self._step = None, step

    def peek(self, n: int) -> list[Any]:
        """The next `n` batches. They are held, and still come as the next ones."""
        if self._state is None:
            self._state = self._batches.state_dict()
        while len(self._ahead) < n:
            batch = self._read(self._step + len(self._ahead))
            self._ahead.append((batch, self._batches.state_dict()))
        return [batch for batch, _ in list(self._ahead)[:n]]

    def take(self) -> Any:
        """The next batch, [batch_size, d_in] float32. Raises InvalidArgument for one that cannot be trained on."""
        if self._ahead:
            batch, self._state = self._ahead.popleft()
        else:
            batch, self._state = self._read(self._step), None
        self._step += 1
        return batch

    def _read(self, step: int) -> Any:
        try:
            batch: Any = next(self._batches)
        except StopIteration:
            raise FailedPrecondition(
                f"the batches ended before step {step}; give endless ones, or train for fewer steps"
            ) from None
        torch, size, d_in = self._torch, self._batches.batch_size, self._batches.d_in
        if not isinstance(batch, torch.Tensor) or batch.dtype != torch.float32:
            said = getattr(batch, "dtype", type(batch).__name__)
            raise InvalidArgument(f"the batch of step {step} is {said}; batches are float32 tensors")
        if tuple(batch.shape) != (size, d_in):
            raise InvalidArgument(
                f"the batch of step {step} has shape {list(batch.shape)}; its source says [batch_size, d_in] = {[size, d_in]}"
            )
        # A sum is finite only where every value is, and costs less than to ask each; large values may overflow it.
        if not bool(torch.isfinite(batch.sum())) and not bool(torch.isfinite(batch).all()):
            bad = int((~torch.isfinite(batch).all(dim=1)).sum())
            raise InvalidArgument(f"{bad} of {size} rows of the batch of step {step} hold NaN or infinity; drop them")
        return batch
