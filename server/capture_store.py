"""Captures kept in the worker's memory for later patching, under a byte cap. Owners, quotas and disk come with users."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping

from ..protos.errors import NotFound, ResourceExhausted
from ..protos.model import StoredCapture
from ..protos.tensors import Array, Tensor

__all__ = ["CaptureStore"]


class CaptureStore(Mapping[str, Array]):
    """Stored captures by id; as a mapping, id → array. Used from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._items: dict[str, tuple[StoredCapture, Tensor]] = {}
        self._reserved = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes held and reserved."""
        with self._lock:
            return self._reserved + sum(len(tensor.data) for _, tensor in self._items.values())

    def reserve(self, n_bytes: int) -> None:
        """Set room aside before a request starts. Raises ResourceExhausted when there is not enough."""
        used = self.used_bytes
        if used + n_bytes > self.max_bytes:
            raise ResourceExhausted(
                f"storing this would take {n_bytes:,} bytes, and {used:,} of {self.max_bytes:,} are in use; "
                "delete captures, store fewer sites or positions, or raise the worker's max_store_bytes"
            )
        with self._lock:
            self._reserved += n_bytes

    def release(self, n_bytes: int) -> None:
        """Undo `reserve`, once the captures are put or the request has ended."""
        with self._lock:
            self._reserved -= n_bytes

    def put(self, model: str, site: str, input_name: str, positions: tuple[int, ...], array: Array) -> StoredCapture:
        """Keep an array under a new id that cannot be guessed."""
        tensor = Tensor.of(array)
        item = StoredCapture(
            f"cap-{secrets.token_urlsafe(12)}", site, input_name, positions, tensor.dtype, tensor.shape, model
        )
        with self._lock:
            self._items[item.id] = (item, tensor)
        return item

    def list(self) -> list[StoredCapture]:
        """Everything kept, oldest first."""
        with self._lock:
            return [item for item, _ in self._items.values()]

    def get_item(self, capture_id: str) -> tuple[StoredCapture, Tensor]:
        """One capture. Raises NotFound."""
        with self._lock:
            found = self._items.get(capture_id)
        if found is None:
            raise NotFound(f"no stored capture {capture_id!r}; it was deleted, or the worker has restarted since")
        return found

    def delete(self, capture_id: str) -> None:
        """Forget one. Raises NotFound."""
        self.get_item(capture_id)
        with self._lock:
            self._items.pop(capture_id, None)

    def __getitem__(self, capture_id: str) -> Array:
        with self._lock:
            return self._items[capture_id][1].numpy()

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)
