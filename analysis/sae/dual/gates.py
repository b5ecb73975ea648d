"""Gates on latents, learned beside the SAE: a pair a cluster (forget, retain), or one a latent from dual statistics.

A saved SAE encodes without a label, so gates are folded away at the end: a latent's mean gate becomes a part of its
decoder norm, in which sae-lens's thresholds are compared; a latent whose gates are shut falls below every threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from ....protos.errors import InvalidArgument
from .labels import checked_labels

__all__ = ["ClusterGates", "FeatureAttention", "Gates"]

_SHUT = 0.05
_LEAST = 1e-3
"""The factor of a latent that is shut; 0 would leave a direction without length."""
_OPEN = 2.0
"""σ(2) = .88: gates begin almost open."""


class Gates:
    """What both have in common: a factor a row and latent in the encoder, its own Adam, folding, state."""

    name = "gates"

    def __init__(self, labels: Any, *, lr: float, seed: int) -> None:
        self.labels, self.lr, self.seed = checked_labels(labels), float(lr), int(seed)
        self.parameters: dict[str, Any] = {}
        self._optimizer: Any = None
        self._sae: Any = None
        self._loaded: dict[str, Any] = {}

    def begin(self, sae: Any) -> dict[str, Any]:
        """The parameters, of an SAE that is to be gated."""
        raise NotImplementedError

    def gates(self, sae: Any) -> tuple[Any, Any]:
        """[latent] of forget rows and of retain rows, with gradients."""
        raise NotImplementedError

    def managed(self, sae: Any) -> None:
        """Between steps."""

    def before(self, sae: Any) -> None:
        """Take the step of the gates that the last backward pass allows; the first time, put them in place."""
        if self._sae is not sae:
            self._attach(sae)
        self._step()
        self.managed(sae)

    def finish(self, sae: Any) -> None:
        """Fold the mean gate of each latent into its decoder norm, and take the gates away."""
        torch: Any = import_module("torch")
        if self._sae is not sae:
            return
        self._step()
        with torch.no_grad():
            forget, retain = self.gates(sae)
            factor = ((forget + retain) / 2).clone()
            factor[(forget < _SHUT) & (retain < _SHUT)] = _LEAST
            sae.W_dec.mul_(factor[:, None])
        del sae.encode_with_hidden_pre
        self._sae = None

    def state(self) -> dict[str, Any]:
        """Gates and Adam's moments. The step that the last backward pass allows is taken first: nothing comes between."""
        self._step()
        found = {f"gate.{name}": value.detach().clone() for name, value in self.parameters.items()}
        moments: dict[int, dict[str, Any]] = self._optimizer.state_dict()["state"] if self._optimizer else {}
        for index, state in moments.items():
            found |= {f"adam.{index}.{key}": value.clone() for key, value in state.items()}
        return found | self.own_state()

    def own_state(self) -> dict[str, Any]:
        """Tensors of what else changes."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it; taken up when the gates are put in place."""
        self._loaded = dict(state)

    def _attach(self, sae: Any) -> None:
        torch: Any = import_module("torch")
        self._sae = sae
        self.parameters = {name: torch.nn.Parameter(value) for name, value in self.begin(sae).items()}
        self._optimizer = torch.optim.Adam(self.parameters.values(), lr=self.lr)
        if self._loaded:
            self._take_up(torch)
        plain = sae.encode_with_hidden_pre

        def gated(x: Any) -> tuple[Any, Any]:
            acts, hidden = plain(x)
            forget, retain = self.gates(sae)
            return acts * torch.where(self.labels[: len(x), None], forget, retain), hidden

        sae.encode_with_hidden_pre = gated

    def _take_up(self, torch: Any) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self._loaded[f"gate.{name}"])
        state = self._optimizer.state_dict()
        for key, value in self._loaded.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                state["state"].setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict(state)
        self._loaded = {}

    def _step(self) -> None:
        if any(value.grad is not None for value in self.parameters.values()):
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)


class ClusterGates(Gates):
    """Hierarchical: decoder directions are clustered every `every` steps (k-means), and each cluster has two gates.

    Forget rows are multiplied by σ(a_c), retain rows by σ(b_c); the loss is γ·Σ of the gates' entropies, which wants
    them open or shut. Clusters begin from the last ones' centres, so that a gate stays with its cluster.
    """

    name = "cluster_gates"

    def __init__(
        self, labels: Any, *, clusters: int = 32, every: int = 50, entropy: float = 0.1, lr: float = 0.01, seed: int = 0
    ) -> None:
        super().__init__(labels, lr=lr, seed=seed)
        if clusters < 2 or every < 1 or entropy < 0:
            raise InvalidArgument(
                f"2 clusters or more, every 1 step or more, entropy 0 or more; got {clusters}, {every}, {entropy}"
            )
        self.clusters, self.every, self.entropy = clusters, every, entropy
        self.of: Any = None
        """[latent]: its cluster."""
        self._centres: Any = None
        self._seen = 0

    @property
    def note(self) -> Mapping[str, Any]:
        """For the manifest of a run."""
        return {
            "clusters": self.clusters,
            "every": self.every,
            "entropy": self.entropy,
            "lr": self.lr,
            "seed": self.seed,
        }

    def begin(self, sae: Any) -> dict[str, Any]:
        """As `Gates`."""
        torch: Any = import_module("torch")
        if sae.W_dec.shape[0] < self.clusters:
            raise InvalidArgument(f"{sae.W_dec.shape[0]} latents make no {self.clusters} clusters; take fewer")
        if self._loaded:
            self.of, self._centres = self._loaded.pop("of"), self._loaded.pop("centres").numpy()
            self._seen = int(self._loaded.pop("seen"))
        else:
            self._cluster(sae)
        return {name: torch.full((self.clusters,), _OPEN) for name in ("forget", "retain")}

    def managed(self, sae: Any) -> None:
        """As `Gates`."""
        self._seen += 1
        if self._seen % self.every == 0:
            self._cluster(sae)

    def gates(self, sae: Any) -> tuple[Any, Any]:
        """As `Gates`."""
        del sae
        return self.parameters["forget"].sigmoid()[self.of], self.parameters["retain"].sigmoid()[self.of]

    def __call__(self, sae: Any, output: Any) -> Any:
        """γ·Σ entropy, in nats."""
        del sae, output
        torch: Any = import_module("torch")
        p = torch.cat(list(self.parameters.values())).sigmoid()
        return self.entropy * -(p * p.clamp_min(1e-8).log() + (1 - p) * (1 - p).clamp_min(1e-8).log()).sum()

    def own_state(self) -> dict[str, Any]:
        """As `Gates`."""
        torch: Any = import_module("torch")
        return {"of": self.of, "centres": torch.from_numpy(np.asarray(self._centres)), "seen": torch.tensor(self._seen)}

    def _cluster(self, sae: Any) -> None:
        torch: Any = import_module("torch")
        cluster: Any = import_module("sklearn.cluster")
        rows = sae.W_dec.detach().float().cpu().numpy()
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
        begin = "k-means++" if self._centres is None else self._centres
        found = cluster.KMeans(self.clusters, init=begin, n_init=1, random_state=self.seed).fit(rows)
        self._centres, self.of = found.cluster_centers_, torch.from_numpy(found.labels_.astype(np.int64))


class FeatureAttention(Gates):
    """Per-feature attention: gate_j = σ(W₂ relu(W₁ s_j)), s_j its log rates and mean activations on both corpora and ‖D_j‖.

    One small net for all latents; the statistics are running means over batches. Adds nothing to the loss.
    """

    name = "feature_attention"
    _DECAY = 0.95

    def __init__(self, labels: Any, *, hidden: int = 16, lr: float = 0.01, seed: int = 0) -> None:
        super().__init__(labels, lr=lr, seed=seed)
        if hidden < 1:
            raise InvalidArgument(f"hidden is 1 or more, got {hidden}")
        self.hidden = hidden
        self.statistics: Any = None
        """[latent, 4]: rates on forget and retain rows, mean activations there."""

    @property
    def note(self) -> Mapping[str, Any]:
        """For the manifest of a run."""
        return {"hidden": self.hidden, "lr": self.lr, "seed": self.seed}

    def begin(self, sae: Any) -> dict[str, Any]:
        """As `Gates`."""
        torch: Any = import_module("torch")
        generator = torch.Generator().manual_seed(self.seed)
        self.statistics = self._loaded.pop("statistics") if self._loaded else torch.zeros(sae.W_dec.shape[0], 4)
        return {
            "W1": torch.randn(5, self.hidden, generator=generator) / 5**0.5,
            "W2": torch.randn(self.hidden, generator=generator) / self.hidden,
            "b2": torch.full((1,), _OPEN),
        }

    def gates(self, sae: Any) -> tuple[Any, Any]:
        """As `Gates`: the same for both kinds of rows."""
        torch: Any = import_module("torch")
        rates, means = self.statistics[:, :2], self.statistics[:, 2:]
        norms = sae.W_dec.detach().norm(dim=-1, keepdim=True)
        seen = torch.cat([(rates + 1e-4).log() / 5, means / means.mean().clamp_min(1e-6), norms / norms.mean()], dim=1)
        gate = ((seen @ self.parameters["W1"]).relu() @ self.parameters["W2"] + self.parameters["b2"]).sigmoid()
        return gate, gate

    def __call__(self, sae: Any, output: Any) -> Any:
        """No term; the statistics go on."""
        torch: Any = import_module("torch")
        del sae
        acts = output.feature_acts.detach()
        sides = (acts[self.labels], acts[~self.labels])
        now = torch.stack([*((side > 0).float().mean(0) for side in sides), *(side.mean(0) for side in sides)], dim=1)
        self.statistics = self._DECAY * self.statistics + (1 - self._DECAY) * now
        return output.loss.new_zeros(())

    def own_state(self) -> dict[str, Any]:
        """As `Gates`."""
        return {"statistics": self.statistics}
