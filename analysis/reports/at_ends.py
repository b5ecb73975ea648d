"""What changes of a model do to prompts: a metric of each, and how far the next-token distribution moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, Input, Kl, Logit, Target
from ...clients.requests.prompts import Prompt, to_input
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ...protos.variants.use import VariantUse

__all__ = ["Measured", "kl_at_end", "measure"]

Floats = NDArray[np.float64]
INPUTS_A_REQUEST = 16


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Metrics at the ends of prompts under plans."""

    values: Floats
    """[plan, prompt]."""
    kl: Floats
    """[plan, prompt]: KL(base ‖ changed) of the token after the prompt, nats; the base is the prompt with no hooks and no variant."""


def measure(
    client: Client,
    prompts: Sequence[Prompt],
    metrics: Metric | Sequence[Metric],
    plans: Sequence[Sequence[Hook]],
    *,
    variants: Sequence[VariantUse] = (),
    kl: bool = True,
    model: str = "",
    progress: bool = False,
) -> Measured:
    """Every plan on every prompt, with `variants`, in as few sweeps as it takes; hooks may name a prompt by its number ("0").

    `metrics`: one for all prompts, or one a prompt. Without `kl` it is not measured (NaN), at half the work. Raises InvalidArgument where these do not match in number, and as `sweep`.
    """
    each = list(metrics) if isinstance(metrics, Sequence) else [metrics] * len(prompts)
    if len(each) != len(prompts) or not prompts or not plans:
        raise InvalidArgument(
            f"{len(prompts)} prompts, {len(each)} metrics and {len(plans)} plans; give one metric a prompt"
        )
    values, moved = (np.full((len(plans), len(prompts)), np.nan) for _ in range(2))
    for start in range(0, len(prompts), INPUTS_A_REQUEST):
        names = [str(i) for i in range(start, min(start + INPUTS_A_REQUEST, len(prompts)))]
        inputs: list[Input] = []
        for name in names:
            item = to_input(prompts[int(name)], name)
            # An input without the field runs on a server that knows no variants too.
            inputs.append(replace(item, variants=tuple(variants)) if variants else item)
            if kl:
                inputs.append(replace(item, name=f"base {name}", source_only=True))
        targets = [Target(each[int(name)], (name,)) for name in names]
        targets += [Target(Kl(f"base {name}"), (name,)) for name in names if kl]
        kept = [[hook for own in plan if (hook := _among(own, names)) is not None] for plan in plans]
        found = client.sweep(inputs, targets, kept, model=model, progress=progress).measured
        for name in names:
            values[:, int(name)] = found[name][:, 0]
            if kl:
                moved[:, int(name)] = found[name][:, 1]
    return Measured(values, moved)


def kl_at_end(
    client: Client,
    prompts: Sequence[Prompt],
    *,
    hooks: Sequence[Hook] = (),
    variants: Sequence[VariantUse] = (),
    model: str = "",
) -> Floats:
    """[prompt]: KL(base ‖ changed) of the token after each prompt, in nats."""
    return measure(client, prompts, Logit(0), [list(hooks)], variants=variants, model=model).kl[0]


def _among(hook: Hook, names: Sequence[str]) -> Hook | None:
    """A hook for those of its inputs that this request has; None: for none of them."""
    if hook.inputs is None:
        return replace(hook, inputs=tuple(names))
    kept = tuple(name for name in hook.inputs if name in names)
    return replace(hook, inputs=kept) if kept else None
