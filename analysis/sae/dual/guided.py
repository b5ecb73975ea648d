"""Gradient-guided management: latents that matter least to the corpus to forget begin anew on what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from ....protos.errors import InvalidArgument
from .labels import checked_labels
from .model_signal import ModelSignal

__all__ = ["GradientGuided", "latent_importance"]

_ENCODER_SHARE = 0.2
"""Of the others' mean encoder norm, that a latent begins anew with, as in resampling (Bricken et al. 2023)."""


def latent_importance(acts: Any, error: Any, labels: Any) -> Any:
    """[latent]: mean over forget rows of |f_j · ∂L/∂f_j| minus that over retain rows; acts [row, latent] with a graph to L."""
    torch: Any = import_module("torch")
    [gradient] = torch.autograd.grad(error, acts, retain_graph=True)
    matters = (acts * gradient).detach().abs()
    return matters[labels].mean(0) - matters[~labels].mean(0)


class GradientGuided:
    """Every `every` steps, `share` of the latents are re-initialised: the dead first, then those of least importance.

    A latent begins anew at the residual of a forget row, those of largest error first; L is the SAE's own squared error, or
    with `signal` the model's next-token loss (`model_signal`).
    Adam keeps its moments of the old latent, which fade within some tens of steps. Nothing is managed in the last
    `rest` of the steps, so that what began anew can learn. Adds nothing to the loss.
    """

    name = "guided"

    def __init__(
        self,
        labels: Any,
        steps: int,
        *,
        every: int = 25,
        share: float = 0.01,
        rest: float = 0.4,
        signal: ModelSignal | Literal["error"] = "error",
    ) -> None:
        if every < 1 or not 0 < share < 1 or not 0 <= rest < 1 or steps < 1:
            raise InvalidArgument(
                f"every is 1 or more, share and rest lie between 0 and 1; got {every}, {share}, {rest}"
            )
        self.labels = checked_labels(labels)
        self.steps, self.every, self.share, self.rest, self.signal = steps, every, share, rest, signal
        self.changed = 0
        """Latents that began anew so far."""
        self._step = 0
        self._fired: Any = None
        self._pending: tuple[Any, Any] | None = None

    @property
    def note(self) -> Mapping[str, Any]:
        """For the manifest of a run."""
        signal = self.signal if isinstance(self.signal, str) else {"model": dict(self.signal.note)}
        return {"every": self.every, "share": self.share, "rest": self.rest, "signal": signal}

    def before(self, sae: Any) -> None:
        """Put what was chosen at the end of the last step in place; weights may not change within a step."""
        if self._pending is None:
            return
        torch: Any = import_module("torch")
        chosen, directions = self._pending
        self._pending = None
        with torch.no_grad():
            norm = sae.W_dec.norm(dim=-1).mean()
            encoder = sae.W_enc.norm(dim=0).mean() * _ENCODER_SHARE
            sae.W_dec[chosen] = directions * norm
            sae.W_enc[:, chosen] = directions.T * encoder
            sae.b_enc[chosen] = 0
        self.changed += len(chosen)

    def __call__(self, sae: Any, output: Any) -> Any:
        """No term; every so often, the choice of what is to begin anew."""
        torch: Any = import_module("torch")
        fired = (output.feature_acts.detach() > 0).any(0)
        self._fired = fired if self._fired is None else self._fired | fired
        self._step += 1
        if self._step % self.every == 0 and self._step <= (1 - self.rest) * self.steps:
            if isinstance(self.signal, ModelSignal):
                importance = self.signal.importance(sae)
            else:
                importance = latent_importance(output.feature_acts, output.losses["mse_loss"], self.labels)
            importance = torch.where(self._fired, importance, importance.min() - 1)
            residual = (output.sae_in - output.sae_out).detach()[self.labels]
            n = min(max(1, round(self.share * len(importance))), len(residual))
            worst = residual[residual.norm(dim=-1).topk(n).indices]
            directions = worst / worst.norm(dim=-1, keepdim=True).clamp_min(1e-8)
            self._pending = (importance.topk(n, largest=False).indices, directions)
            self._fired = torch.zeros_like(self._fired)
        return output.loss.new_zeros(())

    def finish(self, sae: Any) -> None:
        """Nothing is left to do."""

    def state(self) -> dict[str, Any]:
        """Step, what fired since the last choice, and a choice that waits."""
        torch: Any = import_module("torch")
        found: dict[str, Any] = {"step": torch.tensor(self._step), "changed": torch.tensor(self.changed)}
        if self._fired is not None:
            found["fired"] = self._fired
        if self._pending is not None:
            found |= {"chosen": self._pending[0], "directions": self._pending[1].contiguous()}
        return found

    def load(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it."""
        self._step, self.changed = int(state["step"]), int(state["changed"])
        self._fired = state.get("fired")
        self._pending = (state["chosen"], state["directions"]) if "chosen" in state else None
