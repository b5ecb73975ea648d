"""What latents do for the model's own prediction: rows of two corpora with the gradient of the next-token loss by each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.metrics import LogProb, WeightedSum
from ..data.corpus import Texts, of

__all__ = ["ModelSignal", "model_signal"]

WINDOW = 64
"""Tokens of a text that are read."""
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ModelSignal:
    """Rows of a site and ∂L/∂row, L the summed next-token loss of the row's text, as the model is without an SAE.

    An SAE of those rows whose error is kept leaves the forward as it is, so ∂L/∂f_j at a row is D_j · ∂L/∂row: what the server's
    latent gradients say, for whatever SAE, without asking it again at every step of a training.
    """

    rows: Rows
    """[row, d_in], the corpus to forget first."""
    gradients: Rows
    """[row, d_in]."""
    n_forget: int

    def __post_init__(self) -> None:
        if self.rows.shape != self.gradients.shape or self.rows.ndim != 2 or not 0 < self.n_forget < len(self.rows):
            raise InvalidArgument(
                f"a signal has as many gradients as rows, of both corpora; got {self.rows.shape}, {self.gradients.shape}, {self.n_forget}"
            )

    @property
    def note(self) -> Mapping[str, Any]:
        """For the manifest of a run."""
        digest = sha256(self.rows.tobytes() + self.gradients.tobytes()).hexdigest()
        return {"rows": len(self.rows), "n_forget": self.n_forget, "sha256": digest}

    def importance(self, sae: Any) -> Any:
        """[latent]: mean over forget rows of |f_j · ∂L/∂f_j| minus that over retain rows, of an SAE in training.

        Raises FailedPrecondition for whitened rows, whose decoder is not in the space of the gradients.
        """
        torch: Any = import_module("torch")
        scaler = getattr(sae, "activation_scaler", None)
        if getattr(scaler, "whitening", None) is not None:
            raise FailedPrecondition("the model's signal is of rows as they are; train without covariance_whitening")
        factor = getattr(scaler, "scaling_factor", None) or 1.0
        with torch.no_grad():
            # The class's own: gates of a run multiply by what side a row is of, and these rows are no batch of it.
            own: Any = sae.__class__
            acts: Any = own.encode_with_hidden_pre(sae, torch.from_numpy(self.rows).to(sae.W_dec) * factor)[0]
            acts = acts.to_dense() if acts.is_sparse else acts
            directions = sae.W_dec
            if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
                directions = directions / directions.norm(dim=-1, keepdim=True)
            slopes = torch.from_numpy(self.gradients).to(sae.W_dec) @ directions.T / factor
            matters: Any = (acts * slopes).abs()
        return matters[: self.n_forget].mean(0) - matters[self.n_forget :].mean(0)


def model_signal(
    client: Client, site: str, forget: Texts, retain: Texts, *, n_tokens: int = 256, model: str = ""
) -> ModelSignal:
    """Read `n_tokens` rows of each corpus, a text's first token left out; a forward and a backward pass a text.

    Raises InvalidArgument where a corpus has too few tokens.
    """
    sides = [_side(client, site, texts, n_tokens, model) for texts in (forget, retain)]
    return ModelSignal(
        np.concatenate([side[0] for side in sides]), np.concatenate([side[1] for side in sides]), len(sides[0][0])
    )


def _side(client: Client, site: str, texts: Texts, n_tokens: int, model: str) -> tuple[Rows, Rows]:
    rows: list[Rows] = []
    gradients: list[Rows] = []
    wanted = n_tokens
    for document in of(texts):
        ids = tuple(client.tokenize(document.text, model=model).token_ids[:WINDOW])
        if len(ids) < 3:
            continue
        said = WeightedSum(
            tuple(LogProb(ids[at], position=at - 1) for at in range(1, len(ids))), (-1.0,) * (len(ids) - 1)
        )
        found = client.gradients(ids, said, at=[site], capture=[site], model=model, progress=False)
        # The last row predicts nothing that is read here, and the first is massive.
        rows.append(np.asarray(found.captures[site], dtype=np.float32)[1:-1][:wanted])
        gradients.append(np.asarray(found.gradients[site], dtype=np.float32)[1:-1][:wanted])
        wanted -= len(rows[-1])
        if wanted <= 0:
            return np.concatenate(rows), np.concatenate(gradients)
    raise InvalidArgument(f"the texts hold {n_tokens - wanted} rows, and {n_tokens} were asked for; give more of them")
