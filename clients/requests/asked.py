"""What was asked for a result: kept with it, written out with it, and enough to ask again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, cast

from ...protos.edits import FromInput, Replace
from ...protos.errors import InvalidArgument
from ...protos.gradients import GradientsRequest, IntegratedPath
from ...protos.metrics import Kl, Metric, Target
from ...protos.model import GenerateRequest, Input, RunRequest, Sampling
from ...protos.service import InferenceRequest
from ...protos.spec import Hook, Plan
from ...protos.sweeps import SweepRequest
from ...protos.variants.use import VariantUse

__all__ = ["Asked", "reads_of"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of a client as plain data. Unlike one request it has any number of inputs."""

    operation: Literal["run", "generate", "gradients", "sweep"]
    inputs: tuple[Input, ...]
    plan: Plan = Plan()
    """The hooks, then the captures; of a sweep those that all its plans have in common."""
    model: str = ""
    sampling: Sampling = Sampling()
    """Generate."""
    session: str = ""
    """Generate: id of the live session whose hooks came before the plan's."""
    targets: tuple[Target, ...] = ()
    """Gradients and sweep."""
    rules: tuple[str, ...] = ()
    direct: bool = False
    path: IntegratedPath | None = None
    plans: tuple[Plan, ...] = ()
    """Sweep."""
    share: bool = True
    variants: tuple[VariantUse, ...] = ()
    """That every input runs with which names none itself."""
    vectors_of: tuple[str, ...] = ()
    """Hashes of the models that its steering vectors are for."""

    @property
    def answered(self) -> tuple[str, ...]:
        """Names of the inputs that something is said of, in order."""
        return tuple(item.name for item in self.inputs if not item.source_only)

    def request(self) -> InferenceRequest:
        """As one request. Raises InvalidArgument for what no request can be."""
        if self.operation == "run":
            return RunRequest(self.inputs, self.model, self.plan, self.variants)
        if self.operation == "generate":
            return self.generation()
        if self.operation == "gradients":
            how = (self.rules, self.direct, self.path)
            return GradientsRequest(self.inputs, self.targets, self.model, self.plan, *how, self.variants)
        return SweepRequest(self.inputs, self.targets, self.plans, self.model, self.plan, self.share, self.variants)

    def generation(self) -> GenerateRequest:
        """As one request to generate."""
        return GenerateRequest(self.inputs, self.model, self.plan, self.sampling, self.session, self.variants)


def reads_of(asked: Asked) -> dict[str, set[str]]:
    """Which other inputs each input needs beside it: those that patches, baselines and paths take values from.

    Raises InvalidArgument where a hook, a target or a path names an input that there is not.
    """
    names = [item.name for item in asked.inputs]
    reads: dict[str, set[str]] = {name: set() for name in names}
    for where, hook in _hooks(asked):
        source = _source(hook)
        _require_known(where, (*(hook.inputs or ()), *([] if source is None else [source])), reads)
        for name in () if source is None else hook.inputs or names:
            if hook.inputs is not None or name != source:  # a source is never patched with itself
                reads[name].add(cast("str", source))
    for index, target in enumerate(asked.targets):
        baselines = tuple(_baselines(target.metric))
        _require_known(f"target {index}", (*(target.inputs or ()), *baselines), reads)
        for name in target.inputs or asked.answered:
            reads[name].update(baselines)
    if asked.path is not None:
        _require_known("path", (asked.path.source,), reads)
        for name in asked.answered:
            reads[name].add(asked.path.source)
    return reads


def _hooks(asked: Asked) -> Iterator[tuple[str, Hook]]:
    for index, hook in enumerate(asked.plan.hooks):
        yield f"hook {index} ({hook.site})", hook
    for number, plan in enumerate(asked.plans):
        for index, hook in enumerate(plan.hooks):
            yield f"plan {number}: hook {index} ({hook.site})", hook


def _source(hook: Hook) -> str | None:
    edit = hook.edit
    return edit.source.input if isinstance(edit, Replace) and isinstance(edit.source, FromInput) else None


def _baselines(metric: Metric) -> Iterator[str]:
    """Inputs that a metric compares with, at any depth of it."""
    if isinstance(metric, Kl):
        yield metric.baseline
    for field in fields(metric):
        value: Any = getattr(metric, field.name)
        for item in cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,):
            if is_dataclass(item) and not isinstance(item, type):
                yield from _baselines(cast("Metric", item))


def _require_known(where: str, named: tuple[str, ...], known: dict[str, set[str]]) -> None:
    unknown = [name for name in dict.fromkeys(named) if name not in known]
    if unknown:
        listed = list(known)
        shown = f"{listed[:8]} and {len(listed) - 8} more" if len(listed) > 8 else str(listed)
        raise InvalidArgument(f"{where}: no inputs {unknown} in this request; it has {shown}")
