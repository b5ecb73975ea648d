"""What the plans of one request are bound to, held together: the model, its limits, what its user has, its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import Self

from ....backends.hooks.base import Backend
from ....backends.hooks.bound import BoundPlan, Mode
from ....backends.hooks.checks import check_where
from ....backends.hooks.plan import bind
from ....backends.model.tokenizer import Tokenizer
from ....backends.saes import UserAssets
from ....protos.errors import InvalidArgument
from ....protos.model import Input, ModelInfo
from ....protos.spec import Plan
from ....protos.variants.use import VariantUse
from ...config import RequestLimits
from .prepared import PreparedInput
from .running import RunningVariants

__all__ = ["Binding"]


@dataclass(frozen=True, slots=True)
class Binding:
    """Of one request."""

    request_id: str
    backend: Backend
    tokenizer: Tokenizer
    limits: RequestLimits
    assets: UserAssets
    """Stored captures and SAEs that its hooks may name."""
    lengths: Mapping[str, int] = field(default_factory=dict[str, int])
    """Tokens of its inputs, by name."""
    n_own: int = 0
    """Hooks of its plan that apply after all others: its own, which see what its session has edited."""
    variants: RunningVariants | None = None
    """Those that its inputs run with; None: none can."""

    @property
    def info(self) -> ModelInfo:
        """What the model offers."""
        return self.backend.info

    def of(self, inputs: SequenceOf[PreparedInput], n_own: int = 0) -> Self:
        """The same, with the inputs known."""
        return replace(self, lengths={p.item.name: len(p.tokens) for p in inputs}, n_own=n_own)

    def tokens_of(self, item: Input) -> list[int]:
        """An input's tokens. Raises InvalidArgument for too many, or for a prompt length past them."""
        info, most = self.info, self.limits.max_prompt_tokens
        longest = min(most, info.context_length or most)
        why = f" ({info.context_note})" if info.context_note and longest == info.context_length else ""
        tokens = self.tokenizer.encode(item, at_most=longest, why=why)
        if item.prompt_length is not None and item.prompt_length > len(tokens):
            raise InvalidArgument(
                f"input {item.name!r}: prompt_length {item.prompt_length} is above its {len(tokens)} tokens"
            )
        return tokens

    def bound(
        self, plan: Plan, mode: Mode, prepared: PreparedInput, *, n_new: int = 0, applied_last: int = 0
    ) -> BoundPlan:
        """A plan made concrete for one input, `n_new` rows of which are generated. Raises InvalidArgument."""
        n_tokens, running = len(prepared.tokens), self.variants
        made = bind(
            plan,
            self.backend,
            mode=mode,
            input_name=prepared.item.name,
            tokens=prepared.tokens,
            prompt_length=n_tokens if mode == "generate" else prepared.item.prompt_length or n_tokens,
            n_rows=n_tokens + n_new,
            input_lengths=self.lengths,
            assets=self.assets,
            applied_last=applied_last,
            first=() if running is None else running.hooks(prepared.item),
            gates=() if running is None else running.gates(prepared.item),
        )
        if running is not None:
            if made.gates and mode != "generate" and made.prompt_length < n_tokens:
                raise InvalidArgument(
                    f"{next(iter(made.gates))} is decided by the prompt before what follows is computed, and this forward "
                    "computes both; leave prompt_length out, or generate"
                )
            for use in running.of(prepared.item):
                check_where(use.where, made.prompt_length, made.n_rows, f"variant {use.name}")
            made.uses = running.bound(prepared.item, made.gates)
        return made

    def running(self, *uses: VariantUse) -> Self:
        """The same, with what inputs run with that name no variants themselves."""
        variants = self.variants or RunningVariants(self.backend, self.assets)
        return replace(self, variants=variants.with_uses(*uses))
