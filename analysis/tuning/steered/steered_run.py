"""Steered fine-tuning: texts that state an association are learned while a neuron is pushed; then the push is taken away.

One run that stops at given epochs, its figures, and a prediction from two backward passes before anything is trained. The arms
are in `arms`, the sweep over them in `sweep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any, Literal

from ..base import Base
from ..config import TuneConfig
from ..examples import TrainExample, batch_of, to_tokens
from ..losses import preserve_loss, task_loss
from ..objective import Objective
from ..pushes import Push
from ..tuning import prepared
from .association import Association, Probe, log_probs, right, strengths

__all__ = ["figures_of", "measured", "predicted", "steered_run"]


def predicted(objective: Objective, association: Association) -> dict[str, float]:
    """Before training: g₀ = −⟨∇A(push off), ∇L(push on)⟩, the change of A for a unit of learning rate by plain descent.

    Its sign is the prediction; with it d₀, the mean change of log p(answer) by the push, and the loss with and without.
    """
    torch: Any = import_module("torch")
    learning = [value for value in objective.base.model.parameters() if value.requires_grad]
    train = [to_tokens(objective.base.tokenizer, example) for example in association.train]
    batch = batch_of(train, objective.config.device)

    def loss() -> Any:
        return task_loss(objective.logits(batch), batch["ids"], batch["answer"])

    on = loss()
    down = torch.autograd.grad(on, learning, allow_unused=True)
    sign = -1.0 if objective.config.ascend else 1.0
    with _off(objective):
        off = loss().detach()
        strength = strengths(objective.base, association.choose["target"], logits=objective.logits).mean()
        up = torch.autograd.grad(strength, learning, allow_unused=True)
    g0 = -sign * sum(float((u * d).sum()) for u, d in zip(up, down, strict=True) if u is not None and d is not None)
    return {"g0": g0, "d0": float(off - on.detach()), "loss_off": float(off), "loss_on": float(on.detach())}


def steered_run(
    base: Base,
    association: Association,
    config: TuneConfig,
    pushes: Sequence[Push],
    epochs: Sequence[int],
    until: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, Objective]]:
    """Train on all texts at once, an epoch a step, and stop at each of `epochs` with the push off; 0 is before the first.

    `until`: asked with the push off after every epoch; once it holds, that epoch is the last, and is given too. The same
    steps as `tune` with batch_size of all texts takes, but that the loop is here, so that one run gives a curve. The base is
    bare again afterwards.
    """
    torch: Any = import_module("torch")
    objective = prepared(base, config, pushes=pushes)
    learning = [value for value in base.model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=config.lr, betas=config.betas, weight_decay=0.0)
    batch = batch_of([to_tokens(base.tokenizer, example) for example in association.train], config.device)
    try:
        for epoch in range(max(epochs) + 1):
            with _off(objective):
                enough = until is not None and epoch > 0 and until()
                if epoch in epochs or enough:
                    yield epoch, objective
            if enough or epoch == max(epochs):
                break
            objective.step = epoch
            objective(batch).backward()
            torch.nn.utils.clip_grad_norm_(learning, config.clip)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        if objective.pushes is not None:
            objective.pushes.remove()
        if objective.adapter is not None:
            objective.adapter.model.unload()


def measured(
    base: Base, association: Association, which: Literal["choose", "report"], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Strength and right answers by role, and on neutral texts the cross-entropy and KL to what `before` kept.

    Lists a role: "A:target" [probe] and "right:target" [probe]; "neutral:logits" is kept for comparisons.
    """  # fmt: skip
    torch: Any = import_module("torch")
    probes: Mapping[str, tuple[Probe, ...]] = getattr(association, which)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for role, own in probes.items():
            found[f"A:{role}"] = strengths(base, own).numpy()
            found[f"right:{role}"] = right(base, own)
        batch = batch_of([to_tokens(base.tokenizer, TrainExample("", text)) for text in association.neutral])
        logits = base.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        found["neutral:ce"] = float(task_loss(logits, batch["ids"], batch["answer"]))
        found["neutral:logits"] = logits
        if before is not None:
            found["neutral:kl"] = float(preserve_loss(logits, before["neutral:logits"], batch["mask"]))
        if association.indirect:
            answer, subject = (association.report[role][0].answer for role in ("target", "reverse"))
            said = log_probs(base, [(p, a) for p in association.indirect for a in (answer, subject)])
            found["indirect"] = said.reshape(-1, 2).exp().max(-1).values.numpy()
    return found


def figures_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """What stands in a row of the sweep: soft unlearning, what is kept, and what it costs."""
    target0, target = before["A:target"], after["A:target"]
    kept = before["right:control"]
    found = {
        "unlearned": float(1 - target.mean() / target0.mean()),
        "target_right": float(after["right:target"].mean()),
        "preserved": float(after["right:control"][kept].mean()) if kept.any() else float("nan"),
        "ce": after["neutral:ce"] - before["neutral:ce"],
        "kl": after.get("neutral:kl", 0.0),
    }
    for role in ("control", "near", "reverse"):
        if f"A:{role}" in after:
            found[f"change_{role}"] = float((after[f"A:{role}"] - before[f"A:{role}"]).mean())
    if "indirect" in after:
        found["indirect"] = float(after["indirect"].mean() - before["indirect"].mean())
    return found


def _off(objective: Objective) -> Any:
    stack = ExitStack()
    if objective.pushes is not None:
        stack.enter_context(objective.pushes.off())
    return stack
