"""A client of a model that is linear, in numpy: what attribution estimates is then exactly what patching measures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from probewire.clients import FromInput, Hook, Inline, Logit, NamedArray, Replace
from probewire.clients.requests.hooks import to_plan
from probewire.clients.requests.prompts import to_inputs
from probewire.clients.requests.targets import to_targets
from probewire.protos.model import ModelInfo, SiteInfo, Tokenized
from probewire.protos.sites import SitePattern

N_LAYERS, D, VOCAB, LONGEST = 3, 5, 11, 8
STREAM = ("resid_pre", "resid_mid", "resid_post")
BRANCHES = ("attn_resid", "mlp_resid", "attn_out", "mlp_out")
Values = dict[str, Any]


class LinearToy:
    """Attention mixes earlier positions with fixed weights, MLPs are matrices, there are no norms."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.embed, self.unembed = rng.normal(size=(VOCAB, D)), rng.normal(size=(D, VOCAB))
        self.mix = np.tril(rng.normal(size=(N_LAYERS, LONGEST, LONGEST)))
        self.attn, self.mlp = rng.normal(size=(2, N_LAYERS, D, D)) * 0.5

    # ---- what attribution calls ----

    def describe(self, model: str = "") -> ModelInfo:
        del model
        layers = tuple(range(N_LAYERS))
        sites = [SiteInfo(name, ("pos", "d_model"), (D,), layers, gradients=True) for name in (*STREAM, *BRANCHES)]
        sites += [SiteInfo("embed", ("pos", "d_model"), (D,), gradients=True)]
        sizes: dict[str, Any] = {"n_layers": N_LAYERS, "d_model": D, "n_heads": 1, "n_kv_heads": 1, "d_head": D}
        names = dict.fromkeys(("id", "family", "architecture", "backend", "device", "attention", "model_hash"), "toy")
        return ModelInfo(**names, dtype="float64", d_mlp=D, vocab_size=VOCAB, sites=tuple(sites), **sizes)

    def tokenize(self, prompt: Any, *, model: str = "") -> Tokenized:
        del model
        [item] = to_inputs(prompt)
        ids = item.token_ids or ()
        return Tokenized(ids, tuple(f"t{i}" for i in ids), " ".join(f"t{i}" for i in ids))

    def run(self, prompt: Any, *, capture: Any = (), hooks: Any = (), model: str = "") -> Any:
        del model
        names, found = _names(capture), self._forwards(prompt, hooks)
        results = {name: SimpleNamespace(captures={s: found[name][s] for s in names}) for name in found}
        return SimpleNamespace(inputs=results)

    def gradients(self, prompt: Any, target: Any, *, at: Any = (), capture: Any = (), **options: Any) -> Any:
        """By moving every coordinate by 1: exact, as all is linear. Rules and paths change nothing here."""
        hooks = options.get("hooks", ())
        metrics = {name: t.metric for t in to_targets(target) for name in t.inputs or ()}
        found = self._forwards(prompt, hooks)
        results: dict[str, Any] = {}
        for name, metric in metrics.items():
            gradients = {site: self._gradient(prompt, hooks, name, site, metric) for site in _names(at)}
            values = {site: found[name][site] for site in _names(capture)}
            results[name] = SimpleNamespace(metric=_measure(found[name], metric), gradients=gradients, captures=values)
        return SimpleNamespace(inputs=results)

    def sweep(self, prompt: Any, target: Any, plans: Any, *, hooks: Any = (), **_: Any) -> Any:
        metrics = {name: t.metric for t in to_targets(target) for name in t.inputs or ()}
        found = [self._forwards(prompt, [*to_plan(hooks).hooks, *to_plan(plan).hooks]) for plan in plans]
        values = {name: [_measure(one[name], metric) for one in found] for name, metric in metrics.items()}
        return SimpleNamespace(array=lambda name: NamedArray(values[name], {"plan": range(len(plans))}))

    # ---- the model ----

    def _forwards(self, prompt: Any, hooks: Any, extra: tuple[str, str, Any] | None = None) -> dict[str, Values]:
        """Input → site → value; `extra` is (input, site, what is added there)."""
        inputs = to_inputs(prompt)
        plain = {item.name: self._forward(item.token_ids or (), [], {}) for item in inputs}
        found: dict[str, Values] = {}
        for item in inputs:
            own = [h for h in to_plan(hooks).hooks if h.inputs is None or item.name in h.inputs]
            moved = extra[1:] if extra is not None and extra[0] == item.name else None
            found[item.name] = self._forward(item.token_ids or (), own, plain, moved)
        return found

    def _forward(
        self, ids: tuple[int, ...], hooks: list[Hook], plain: dict[str, Values], extra: tuple[str, Any] | None = None
    ) -> Values:
        n, values = len(ids), cast("Values", {})

        def tap(site: str, value: Any) -> Any:
            for hook in hooks:
                if site in _names([hook]):
                    value = _replaced(hook, site, value, plain)
            values[site] = value + extra[1] if extra is not None and extra[0] == site else value
            return values[site]

        x = tap("embed", self.embed[list(ids)])
        for i in range(N_LAYERS):
            x = tap(f"resid_pre.{i}", x)
            mixed = self.mix[i, :n, :n] @ tap(f"attn_resid.{i}", x)
            x = tap(f"resid_mid.{i}", x + tap(f"attn_out.{i}", mixed @ self.attn[i]))
            x = tap(f"resid_post.{i}", x + tap(f"mlp_out.{i}", tap(f"mlp_resid.{i}", x) @ self.mlp[i]))
        values["logits"] = x @ self.unembed
        return values

    def _gradient(self, prompt: Any, hooks: Any, name: str, site: str, metric: Any) -> Any:
        base = self._forwards(prompt, hooks)[name]
        gradient = np.zeros_like(base[site])
        for index in np.ndindex(gradient.shape):
            step = np.zeros_like(gradient)
            step[index] = 1.0
            moved = self._forwards(prompt, hooks, (name, site, step))[name]
            gradient[index] = _measure(moved, metric) - _measure(base, metric)
        return gradient


def _names(captured: Any) -> list[str]:
    return [str(site) for hook in to_plan((), captured).hooks for site in SitePattern.parse(hook.site).expand(N_LAYERS)]


def _measure(values: Values, metric: Any) -> float:
    assert isinstance(metric, Logit)
    return float(values["logits"][metric.position, metric.token])


def _replaced(hook: Hook, site: str, value: Any, plain: dict[str, Values]) -> Any:
    assert isinstance(hook.edit, Replace)
    where = list(range(len(value))) if hook.where.positions is None else list(hook.where.positions)
    source = hook.edit.source
    value = value.copy()
    if isinstance(source, FromInput):
        value[where] = plain[source.input][site][where]
    else:
        assert isinstance(source, Inline)
        value[where] = source.value.numpy()
    return value
