"""What a model loses when an SAE's reconstruction takes the place of its activations at a site.

Next-token cross entropy and KL(p_clean ‖ p), in nats, of the model as it is, with the site ablated (zeros, or the mean of
these contexts), and with an SAE spliced in:

    ce_loss_score = (CE_ablated − CE_sae) / (CE_ablated − CE_clean)      kl_div_score = (KL_ablated − KL_sae) / KL_ablated

1 is a perfect reconstruction, 0 is no better than ablation, and below 0 is worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, Input, Run, capture, hook
from ....clients.progress import progress_bar
from ....clients.requests.prompts import Prompts
from ....protos.edits import Constant, Edit, Replace, Zeros
from ....protos.errors import InvalidArgument
from ....protos.latents import Latents
from ....protos.tensors import Tensor
from ...ablation.reference import tokenized
from .intervals import Estimate, ratio_of_sums
from .splice import Spare, Splice, batched, splice

__all__ = ["Losses", "Variant", "losses"]

INPUTS_A_REQUEST = 4
POSITIONS_FOR_KL = 16
NOT_LOST = 1e-9
"""Nats: an ablation that costs less than this leaves nothing to recover."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """Sums of one way to run the model, by context."""

    ce: Floats
    """[context]: Σ −log p of the tokens that follow, nats."""
    kl: Floats
    """[context]: Σ KL(clean ‖ this) over the positions read, nats."""


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Losses of the model as it is, ablated, and with each SAE. `seed` drew the KL's positions and the intervals."""

    site: str
    clean: Variant
    zero: Variant
    mean: Variant
    saes: Mapping[str, Variant]
    n_predictions: NDArray[np.int64]
    """[context]: tokens that are predicted."""
    n_kl: NDArray[np.int64]
    """[context]: positions at which distributions are compared."""
    spliced: Splice
    everywhere: bool
    """Whether the ablations are made at every position, spared ones included."""
    seed: int

    def ce(self, variant: Variant) -> float:
        """Mean nats a token."""
        return float(variant.ce.sum() / self.n_predictions.sum())

    def kl(self, variant: Variant) -> float:
        """Mean nats a position."""
        return float(variant.kl.sum() / max(self.n_kl.sum(), 1))

    def ce_loss_score(self, sae: str, *, against: str = "zero") -> Estimate:
        """Cross entropy recovered, contexts resampled; `against` is "zero" or "mean"."""
        ablated = self._ablation(against)
        return self._score(
            ablated.ce - self._sae(sae).ce, ablated.ce - self.clean.ce, f"{against}-ablating {self.site}"
        )

    def kl_div_score(self, sae: str, *, against: str = "zero") -> Estimate:
        """Divergence avoided, contexts resampled; `against` is "zero" or "mean"."""
        if not self.n_kl.sum():
            raise InvalidArgument("no distributions were compared: ask for kl_positions")
        ablated = self._ablation(against)
        return self._score(ablated.kl - self._sae(sae).kl, ablated.kl, f"{against}-ablating {self.site}")

    def to_json(self, sae: str) -> dict[str, Any]:
        """SAEBench's `core` names, with how it was measured. Raises InvalidArgument for an SAE that was not spliced in."""
        self._sae(sae)
        found: dict[str, Any] = {
            "model_performance_preservation": {
                **_named("ce_loss_score", lambda: self.ce_loss_score(sae)),
                "ce_loss_with_ablation": self.ce(self.zero),
                "ce_loss_with_sae": self.ce(self._sae(sae)),
                "ce_loss_without_sae": self.ce(self.clean),
                "ce_loss_with_mean_ablation": self.ce(self.mean),
                **_named("ce_loss_score_mean_ablation", lambda: self.ce_loss_score(sae, against="mean")),
            },
            "token_stats": {"total_tokens_eval_reconstruction": int(self.n_predictions.sum())},
            "how": {
                "contexts": len(self.n_predictions),
                "sae": self.spliced.rule,
                "ablation": "at every position" if self.everywhere else "at the spliced positions",
                "kl_positions": int(self.n_kl.sum()),
                "seed": self.seed,
            },
        }
        if self.n_kl.sum():
            found["model_behavior_preservation"] = {
                **_named("kl_div_score", lambda: self.kl_div_score(sae)),
                "kl_div_with_ablation": self.kl(self.zero),
                "kl_div_with_sae": self.kl(self._sae(sae)),
                "kl_div_with_mean_ablation": self.kl(self.mean),
                **_named("kl_div_score_mean_ablation", lambda: self.kl_div_score(sae, against="mean")),
            }
        return found

    def _ablation(self, against: str) -> Variant:
        if against not in ("zero", "mean"):
            raise InvalidArgument(f'against is "zero" or "mean", got {against!r}')
        return self.zero if against == "zero" else self.mean

    def _sae(self, name: str) -> Variant:
        if name not in self.saes:
            raise InvalidArgument(f"no losses of an SAE {name!r}; there are: {', '.join(self.saes)}")
        return self.saes[name]

    def _score(self, recovered: Floats, lost: Floats, what: str) -> Estimate:
        if lost.sum() < NOT_LOST * len(lost):
            raise InvalidArgument(f"{what} costs the model nothing on these contexts, so there is nothing to recover")
        return ratio_of_sums(recovered, lost, seed=self.seed)


def losses(
    client: Client,
    contexts: Prompts,
    site: str,
    saes: Sequence[str] | Mapping[str, Edit],
    *,
    spare: Spare = "none",
    ablate_everywhere: bool = True,
    kl_positions: int | None = POSITIONS_FOR_KL,
    batch: int = INPUTS_A_REQUEST,
    seed: int = 0,
    progress: bool = True,
    model: str = "",
) -> Losses:
    """Losses with each of the SAEs, which are loaded on the server, spliced in at `site`.

    `saes`: their names; or name → any edit in an SAE's place (a quantisation, an identity). `spare`: positions that keep
    the model's own activation (`Splice.rule` says how many). `ablate_everywhere`: the ablations spare none, as in
    SAEBench. `kl_positions`: positions a context, drawn with `seed`, at which whole distributions are compared (each
    moves a vocabulary; 0: no KL, None: all). `batch`: contexts a request.
    Raises InvalidArgument for contexts of fewer than 2 tokens.
    """
    inputs = list(tokenized(client, contexts, model=model).values())
    _check(inputs, kl_positions)
    edits = saes if isinstance(saes, Mapping) else {name: Latents(name, (), error=False) for name in saes}
    spliced = splice(client, inputs, site, spare, model=model)
    ablations: dict[str, Edit] = {
        "zero": Replace(Zeros()),
        "mean": Replace(Constant(Tensor.of(_mean(client, inputs, site, model)))),
    }
    rng = np.random.default_rng(seed)
    where = {item.name: _positions(rng, len(item.token_ids or ()), kl_positions) for item in inputs}
    # Labels of our own: an SAE may be called "zero".
    edited: list[tuple[str, str, Edit]] = [("ablation", name, edit) for name, edit in ablations.items()]
    edited += [("sae", name, edit) for name, edit in edits.items()]
    sums: dict[tuple[str, str], list[tuple[float, float]]] = {("", "clean"): []}
    sums |= {(kind, name): [] for kind, name, _ in edited}
    with progress_bar("losses", "plans", show=progress) as bar:
        for number, some in enumerate(batched(inputs, batch)):
            reads = _reads(some, where)
            clean = client.run(some, capture=reads, model=model)
            sums["", "clean"] += [_sums(clean, clean, item.name) for item in some]
            for kind, name, edit in edited:
                everywhere = kind == "ablation" and ablate_everywhere
                hooks = [hook(site, edit)] if everywhere else spliced.hooks(site, edit, some)
                run = client.run(some, hooks=hooks, capture=reads, model=model)
                sums[kind, name] += [_sums(clean, run, item.name) for item in some]
            bar(min((number + 1) * batch, len(inputs)), len(inputs))
    variants = {label: Variant(*np.array(found).T) for label, found in sums.items()}
    return Losses(
        site,
        variants["", "clean"],
        variants["ablation", "zero"],
        variants["ablation", "mean"],
        {name: variants["sae", name] for name in edits},
        np.array([len(item.token_ids or ()) - 1 for item in inputs]),
        np.array([len(where[item.name]) for item in inputs]),
        spliced,
        ablate_everywhere,
        seed,
    )


def _named(name: str, score: Callable[[], Estimate]) -> dict[str, Any]:
    """A score and its interval; null, with the reason, where there is nothing to recover."""
    try:
        found = score()
    except InvalidArgument as refused:
        return {name: None, f"{name}_refused": str(refused)}
    return {name: found.value, f"{name}_interval": found.to_json()["interval"]}


def _check(inputs: Sequence[Input], kl_positions: int | None) -> None:
    short = [item.name for item in inputs if len(item.token_ids or ()) < 2]
    if short or not inputs:
        raise InvalidArgument(f"a loss needs contexts of 2 tokens or more; too short: {', '.join(short[:5]) or 'all'}")
    if kl_positions is not None and kl_positions < 0:
        raise InvalidArgument(f"kl_positions must be 0 or more, or None for all, got {kl_positions}")


def _mean(client: Client, inputs: Sequence[Input], site: str, model: str) -> NDArray[np.float32]:
    """[…the site's axes]: the mean over all rows, each counting the same."""
    total: Any = 0.0
    for some in batched(inputs):
        run = client.run(some, capture=[capture(site, reduce="mean")], model=model)
        for item in some:
            row = run.inputs[item.name][site].astype(np.float64)
            total = total + row.reshape(row.shape[-1:] if row.shape[:-1] == (1,) else row.shape) * len(
                item.token_ids or ()
            )
    return (total / sum(len(item.token_ids or ()) for item in inputs)).astype(np.float32)


def _positions(rng: np.random.Generator, length: int, n: int | None) -> list[int]:
    if n is None or n >= length:
        return list(range(length))
    return sorted(rng.choice(length, n, replace=False).tolist())


def _reads(inputs: Sequence[Input], where: Mapping[str, Sequence[int]]) -> list[Hook]:
    reads = [capture("logits", reduce="next_logprob", id="ce")]
    reads += [
        capture("logits", dtype="float32", positions=where[item.name], inputs=item.name, id=f"kl {item.name}")
        for item in inputs
        if where[item.name]
    ]
    return reads


def _sums(clean: Run, run: Run, name: str) -> tuple[float, float]:
    captures = run.inputs[name].captures
    ce = -float(np.asarray(captures.hook("ce")["logits"], dtype=np.float64).sum())
    label = f"kl {name}"
    if label not in captures or run is clean:
        return ce, 0.0
    return ce, _kl(clean.inputs[name].captures.hook(label)["logits"], captures.hook(label)["logits"])


def _kl(clean: NDArray[Any], other: NDArray[Any]) -> float:
    """Σ over rows of KL(softmax clean ‖ softmax other), a row at a time: a vocabulary in float64 is large enough."""
    return sum(_divergence(row, changed) for row, changed in zip(clean, other, strict=True))


def _divergence(clean: NDArray[Any], other: NDArray[Any]) -> float:
    """Σ p·(e^r − 1 − r) with r = log q − log p, as the server's own metric has it: no term is negative."""
    log_p, log_q = _log_softmax(clean), _log_softmax(other)
    p, q = np.exp(log_p), np.exp(log_q)
    said = p > 0
    r = log_q[said] - log_p[said]
    small = np.abs(r) < 1.0
    near, far = r[small], ~small
    terms = np.maximum(p[said][small] * (np.expm1(near) - near), 0.0).sum()
    terms += np.maximum(q[said][far] - p[said][far] * (1.0 + r[far]), 0.0).sum()
    return float(terms + q[~said].sum())


def _log_softmax(row: NDArray[Any]) -> Floats:
    shifted = row.astype(np.float64) - float(row.max())
    return shifted - np.log(np.exp(shifted).sum())
