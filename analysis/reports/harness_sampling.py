"""The harness's generation options as ours. What would change a text and is not offered is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...protos.errors import InvalidArgument

__all__ = ["HarnessSampling", "sampling_of"]

_SEED = 1234
"""The harness's own, for its API models."""


@dataclass(frozen=True, slots=True)
class HarnessSampling:
    """One request's options."""

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def as_options(self) -> dict[str, Any]:
        """For `client.generate`."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "stop": self.stop,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        return options | ({"seed": _SEED} if self.temperature else {})


def sampling_of(kwargs: dict[str, Any], max_gen_toks: int) -> HarnessSampling:
    """Of a task's `generation_kwargs`. Raises InvalidArgument for options that are not offered."""
    left = dict(kwargs)
    until = left.pop("until", None) or ()
    stop = (until,) if isinstance(until, str) else tuple(str(text) for text in until)
    most = next((left.pop(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in left), None)
    sampled = left.pop("do_sample", None)
    temperature = float(left.pop("temperature", 0.0 if not sampled else 1.0) or 0.0)
    made = HarnessSampling(
        int(most or max_gen_toks),
        tuple(dict.fromkeys(filter(None, stop))),
        0.0 if sampled is False else temperature,
        float(left.pop("top_p", 1.0) or 1.0),
        int(left.pop("top_k", 0) or 0),
    )
    if left:
        raise InvalidArgument(
            f"generation_kwargs {sorted(left)} are not offered; allowed: until, max_gen_toks, do_sample, temperature, top_p, top_k"
        )
    return made
