"""An SAE on the disk, for mathematics in this process: sae-lens itself, with numpy in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument
from .configs import import_sae_lens

__all__ = ["LoadedSae", "load", "require_trained"]

Floats = NDArray[np.float32]

_ENCODE_ROWS = 4096
"""Rows that are encoded at once."""


@dataclass(frozen=True, slots=True)
class LoadedSae:
    """An SAE that sae-lens has loaded. Its arrays are float32."""

    folder: Path
    sae: Any
    """sae-lens's own object."""
    config: dict[str, Any]
    """cfg.json."""

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """How many latents it has."""
        return int(self.sae.cfg.d_sae)

    @property
    def architecture(self) -> str:
        """standard, topk, jumprelu or gated."""
        return str(self.sae.cfg.architecture())

    @property
    def site(self) -> str:
        """Where it reads, as its own config says (sae-lens: metadata.hook_name); empty when it does not."""
        return str(self.config.get("metadata", {}).get("hook_name") or "")

    @property
    def trained(self) -> bool:
        """Whether it was trained, as far as can be told: our run.json or sae-lens's final metadata say so, or its
        weights are not those that sae-lens begins with (the encoder the decoder's transpose, every bias zero).

        sae-lens notes its version in every SAE that it saves, trained or not, so that note says nothing.
        """
        metadata = self.config.get("metadata", {})
        return bool(self._steps) or metadata.get("l0") is not None or not self._as_initialised

    @property
    def _as_initialised(self) -> bool:
        biases = [getattr(self.sae, name, None) for name in ("b_enc", "b_dec", "b_gate", "b_mag")]
        if any(bias is not None and _numpy(bias).any() for bias in biases):
            return False
        read, write = self.w_enc.T, self.w_dec
        norms = np.linalg.norm(read, axis=1) * np.linalg.norm(write, axis=1)
        return bool(((read * write).sum(axis=1) > (1 - 1e-5) * norms).all())

    @property
    def _steps(self) -> int:
        note = self.folder / "run.json"
        return int(json.loads(note.read_text()).get("steps", 0)) if note.is_file() else 0

    @property
    def w_enc(self) -> Floats:
        """[d_in, d_sae]."""
        return _numpy(self.sae.W_enc)

    @property
    def w_dec(self) -> Floats:
        """[d_sae, d_in]: a latent's direction a row."""
        return _numpy(self.sae.W_dec)

    @property
    def b_dec(self) -> Floats:
        """[d_in]."""
        return _numpy(self.sae.b_dec)

    def encode(self, x: NDArray[Any]) -> Floats:
        """[row, d_in] activations to [row, d_sae] latents."""
        return self._in_parts(self.sae.encode, x, self.d_in)

    def decode(self, f: NDArray[Any]) -> Floats:
        """[row, d_sae] latents to [row, d_in] activations. Not for SAEs that normalise each row of what they read."""
        if self.sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            raise InvalidArgument(f"{self.folder} rescales each row that it reads; use reconstruct")
        return self._in_parts(self.sae.decode, f, self.d_sae)

    def reconstruct(self, x: NDArray[Any]) -> Floats:
        """[row, d_in] activations to their reconstructions."""

        def both(part: Any) -> Any:
            return self.sae.decode(self.sae.encode(part))

        return self._in_parts(both, x, self.d_in)

    def _in_parts(self, function: Any, x: NDArray[Any], width: int) -> Floats:
        torch: Any = import_module("torch")
        if x.ndim != 2 or x.shape[1] != width:
            raise InvalidArgument(f"the SAE in {self.folder} takes rows of width {width}, got shape {list(x.shape)}")
        with torch.no_grad():
            parts = [
                _numpy(function(torch.from_numpy(np.array(x[start : start + _ENCODE_ROWS], dtype=np.float32))))
                for start in range(0, max(len(x), 1), _ENCODE_ROWS)
            ]
        return np.concatenate(parts)


def load(folder: str | Path) -> LoadedSae:
    """Load an SAE in the sae-lens on-disk format. Raises InvalidArgument when the folder holds none."""
    folder = Path(folder)
    missing = [name for name in ("cfg.json", "sae_weights.safetensors") if not (folder / name).is_file()]
    if missing:
        raise InvalidArgument(
            f"{folder} is no SAE: {' and '.join(missing)} not found; allowed is the sae-lens format (sae.save_model)"
        )
    try:
        config: dict[str, Any] = json.loads((folder / "cfg.json").read_text())
        found = import_sae_lens().SAE.load_from_disk(str(folder), device="cpu")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidArgument(f"the SAE in {folder} cannot be loaded: {error}") from None
    _check_finished(folder, str(found.cfg.normalize_activations), config)
    return LoadedSae(folder, found.eval(), config)


def _check_finished(folder: Path, normalisation: str, config: dict[str, Any]) -> None:
    """Refuse what sae-lens loads and does not do; the server refuses the same."""
    if normalisation in ("expected_average_only_in", "covariance_whitening"):
        raise InvalidArgument(
            f"the SAE in {folder} is not finished: it reads activations that training had scaled ({normalisation}), and its "
            "weights do not hold the scale; fold it in with sae-lens, and save it again"
        )
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if activation not in ("relu", "topk"):
        raise InvalidArgument(f"the SAE in {folder} has activation_fn {activation!r}, which sae-lens takes for relu")


def require_trained(sae: LoadedSae) -> None:
    """Refuse to score an SAE that was never trained: its figures look like results."""
    if not sae.trained:
        raise FailedPrecondition(
            f"the SAE in {sae.folder} says nowhere that it was trained, so it is not scored; train it, or pass "
            "allow_untrained=True (--allow-untrained) for a control"
        )


def _numpy(tensor: Any) -> Floats:
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float32)
