"""How much one worker's engine holds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of an engine's batch and cache."""

    n_slots: int = 8
    """Sequences that generate at once."""
    context_tokens: int = 4096
    """Positions that one sequence may use."""
    cache_tokens: int = 16384
    """Positions that all sequences together may use."""
    chunk_tokens: int = 512
    """Rows in one forward: longer prompts are read in chunks. 0: as many as a slice of time holds, found at load."""
    page_tokens: int = 32
    """Positions in one page of a paged cache."""
    max_run_tokens: int = 8192
    """Rows in one batched run, padding included."""
    variant_bytes: int = 2 << 30
    """Of variants' factors, counted in float32, that stay on the device beside those at work; the oldest go."""

    @property
    def n_pages(self) -> int:
        """Pages in the cache."""
        return -(-self.cache_tokens // self.page_tokens)

    def pages(self, n_tokens: int) -> int:
        """Pages that a sequence of this many positions takes."""
        return -(-n_tokens // self.page_tokens)

    def reason_not_to_fit(self, n_tokens: int) -> str | None:
        """Why a sequence of this many positions can never be admitted, or None."""
        allowed = min(self.context_tokens, self.cache_tokens)
        if n_tokens > allowed:
            return f"needs {n_tokens} positions (prompt and new tokens); at most {allowed} are allowed"
        return None
