"""The variants that the inputs of one request run with: found once, by name, and bound to the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ....backends.deltas.factors import BoundUse
from ....backends.hooks.base import Backend
from ....backends.hooks.bound import BoundHook
from ....backends.hooks.plan import Gate, VariantHook
from ....backends.saes.user_assets import FoundVariant, UserAssets
from ....protos.model import Input
from ....protos.spec import Where
from ....protos.variants.use import UsedVariant, VariantUse, checked_uses

__all__ = ["RunningVariants"]

NO_GATES: Mapping[str, BoundHook] = {}


@dataclass(frozen=True, slots=True)
class RunningVariants:
    """Of one request. A name stands for one content for as long as the request lives."""

    backend: Backend
    assets: UserAssets
    uses: tuple[VariantUse, ...] = ()
    """Of every input that names none itself."""
    found: dict[str, FoundVariant] = field(default_factory=dict[str, FoundVariant])

    def with_uses(self, *uses: VariantUse) -> RunningVariants:
        """The same request under other uses: its session's and its own."""
        together = checked_uses(uses, "the request, with its session,")
        return RunningVariants(self.backend, self.assets, together, self.found)

    def of(self, item: Input) -> tuple[VariantUse, ...]:
        """What an input asks for."""
        return self.uses if item.variants is None else item.variants

    def bound(self, item: Input, gates: Mapping[str, BoundHook] = NO_GATES) -> tuple[BoundUse, ...]:
        """The deltas that an input runs with. Raises NotFound, and InvalidArgument for a variant that does not fit the model."""
        table = self.backend.weight_table
        return tuple(
            BoundUse(table.bind(found.variant), use.scale, use.where, gates.get(_gate(i, use)))
            for i, use in enumerate(self.of(item))
            if (found := self.find(use.name)).variant.deltas
        )

    def gates(self, item: Input) -> tuple[Gate, ...]:
        """The conditions of its uses."""
        return tuple(
            Gate(_gate(i, use), use.where) for i, use in enumerate(self.of(item)) if use.where.when is not None
        )

    def hooks(self, item: Input) -> tuple[VariantHook, ...]:
        """The hooks that they bring, in the order in which they are named."""
        return tuple(
            VariantHook(
                hook,
                f"variant {use.name}, hook {i}",
                use.scale,
                None if use.where == Where() else use.where,
                _gate(number, use),
            )
            for number, use in enumerate(self.of(item))
            for i, hook in enumerate(self.find(use.name).variant.plan.hooks)
        )

    def check(self) -> None:
        """Raise what a request with these uses would be refused with."""
        nobody = Input(token_ids=())
        self.bound(nobody)
        self.hooks(nobody)

    def find(self, name: str) -> FoundVariant:
        """What a name stands for. Raises NotFound, and FailedPrecondition for a variant of another model."""
        if name not in self.found:
            self.found[name] = self.assets.variant(name)
        return self.found[name]

    def used(self, items: Iterable[Input]) -> tuple[UsedVariant, ...]:
        """Which content each name stands for, and for whose inputs."""
        inputs: dict[VariantUse, list[str]] = {}
        for item in items:
            for use in self.of(item):
                inputs.setdefault(use, []).append(item.name)
        return tuple(self._used(use, tuple(dict.fromkeys(names))) for use, names in inputs.items())

    def _used(self, use: VariantUse, inputs: tuple[str, ...]) -> UsedVariant:
        found = self.find(use.name)
        return UsedVariant(found.name, found.version, found.variant.hash, found.owner, use.scale, inputs)


def _gate(index: int, use: VariantUse) -> str:
    """How the condition of an input's use is named; nobody's where it has none."""
    return "" if use.where.when is None else f"the condition of variant {use.name} ({index})"
