"""How many bytes users keep in SAEs and variants: those two share a limit, a user's own and the box's."""

from __future__ import annotations

from collections.abc import Collection

from ...protos.errors import ResourceExhausted
from ..auth.users import User
from .database import State
from .uploads import Uploads

__all__ = ["Room"]


class Room:
    """Of one state folder."""

    def __init__(self, state: State, uploads: Uploads, max_all_bytes: int = 0) -> None:
        """`max_all_bytes`: of all users' (0: no bound)."""
        self._state, self._uploads, self._max_all_bytes = state, uploads, max_all_bytes

    def check(self, user: User, n_bytes: int, uploads: Collection[str], what: str, fix: str) -> None:
        """Raise ResourceExhausted where one more would pass a limit; what was sent and not loaded counts, save these files."""
        for limit, whose, owner in (
            (user.limits.store_bytes, f"{user.name}'s", user),
            (self._max_all_bytes, "the box's", None),
        ):
            loaded = self._kept("" if owner is None else owner.name)
            sent = self._uploads.n_bytes(owner, but=(user, uploads))
            if limit and loaded + sent + n_bytes > limit and sent and self._uploads.forget_idle(user, but=uploads):
                sent = self._uploads.n_bytes(owner, but=(user, uploads))
            if limit and loaded + sent + n_bytes > limit:
                waiting = f" ({sent:,} of them sent and not loaded yet)" if sent else ""
                raise ResourceExhausted(
                    f"{what} takes {n_bytes:,} bytes, and {loaded + sent:,} of {whose} {limit:,} are in use by SAEs and variants"
                    f"{waiting}; unload one, {fix}, or ask for a higher limit"
                )

    def _kept(self, owner: str) -> int:
        [(n_bytes,)] = self._state.rows(
            "SELECT (SELECT TOTAL(json_extract(meta,'$.n_bytes')) FROM saes WHERE ?='' OR owner=?) + "
            "(SELECT TOTAL(json_extract(meta,'$.n_bytes')) FROM variants WHERE ?='' OR owner=?)",
            *(owner, owner, owner, owner),
        )
        return int(n_bytes)
