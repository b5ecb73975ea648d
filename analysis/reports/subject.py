"""Who is measured: a model with hooks, with variants, as a live session has them; the base is one without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...clients import Client, Input
from ...clients.requests.hooks import Hooks, planned
from ...clients.session import SessionView
from ...protos.errors import InvalidArgument
from ...protos.spec import Hook, Plan
from ...protos.variants.plans import scaled_plan
from ...protos.variants.use import VariantUse

__all__ = ["Subject", "Uses", "same_model", "uses_of"]

Uses = str | VariantUse | Sequence[str | VariantUse]
"""A variant's name, `use(name, scale, where=…)`, or several."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on a server, and what changes it. Several subjects are asked in one request, each by its own inputs."""

    client: Client
    model: str = ""
    hooks: tuple[Hook, ...] = ()
    """Edits, in the order they apply, behind the variants' own."""
    variants: tuple[VariantUse, ...] = ()

    @classmethod
    def of(
        cls,
        client: Client,
        *,
        hooks: Hooks = (),
        variant: Uses = (),
        session: SessionView | str = "",
        model: str = "",
    ) -> Subject:
        """With hooks, variants, and what a session has now (later updates of it change nothing here).

        Raises InvalidArgument for hooks that only read, or that name inputs.
        """
        own, variants = list(planned(hooks)[0].hooks), uses_of(variant)
        if session:
            view = session if isinstance(session, SessionView) else client.get_session(session)
            own = [*view.hooks, *own]
            variants = (*view.variants, *variants)
        for hook in own:
            if hook.edit is None or hook.inputs is not None:
                raise InvalidArgument(
                    f"the hook at {hook.site} must edit, all inputs alike; leave out captures and inputs"
                )
        return cls(client, model, tuple(own), variants)

    @property
    def changed(self) -> bool:
        """Whether it is more than the base."""
        return bool(self.hooks or self.variants)

    @property
    def base(self) -> Subject:
        """The same model without any of it."""
        return Subject(self.client, self.model)

    def scaled(self, factor: float) -> Subject:
        """The same at another strength. Raises InvalidArgument for a hook that has none."""
        hooks = scaled_plan(Plan(self.hooks), factor).hooks
        return replace(
            self, hooks=hooks, variants=tuple(replace(use, scale=use.scale * factor) for use in self.variants)
        )

    def inputs(self, prompts: Mapping[str, Any]) -> list[Input]:
        """Name → token ids, a text or an `Input`, as this subject reads them."""
        return [_input(name, prompt, self.variants) for name, prompt in prompts.items()]

    def edits(self, names: Sequence[str]) -> list[Hook]:
        """Its hooks, at these inputs of a request alone."""
        return [replace(hook, inputs=tuple(names)) for hook in self.hooks] if names else []


def _input(name: str, prompt: Any, variants: tuple[VariantUse, ...]) -> Input:
    if isinstance(prompt, Input):
        return replace(prompt, name=name, variants=variants)
    if isinstance(prompt, str):
        return Input(text=prompt, name=name, variants=variants)
    return Input(token_ids=tuple(prompt), name=name, variants=variants)


def uses_of(variant: Uses) -> tuple[VariantUse, ...]:
    """As requests have them."""
    given = [variant] if isinstance(variant, (str, VariantUse)) else list(variant)
    return tuple(VariantUse(one) if isinstance(one, str) else one for one in given if one)


def same_model(subjects: Sequence[Subject]) -> Subject:
    """The first. Raises InvalidArgument where they are of several models: what is paired runs in one request."""
    if not subjects:
        raise InvalidArgument("nothing is measured; give at least one subject")
    first = subjects[0]
    if any((one.client, one.model) != (first.client, first.model) for one in subjects):
        raise InvalidArgument("subjects that are compared are of one client and one model")
    return first
