"""Clean and corrupt prompts that pair token by token, and the metric of each: what every patching method starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...clients import Client, Input
from ...clients.requests.prompts import Prompts, to_inputs
from ...protos.errors import InvalidArgument
from ...protos.metrics import Kl, Metric, Target, WeightedSum
from ...protos.model import MAX_INPUTS

__all__ = ["MAX_PAIRS", "Direction", "Pair", "Side", "check_direction", "make_pairs", "same_length"]

Side = Literal["clean", "corrupt"]
Direction = Literal["denoise", "noise"]
"""denoise: the corrupt prompt runs and clean values are put in. noise: the clean one runs and corrupt values are put in."""

MAX_PAIRS = MAX_INPUTS // 3
"""Both prompts of a pair are inputs of one request, and a third where the metric is a KL."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts, of equal length unless they were made otherwise, and the metric that tells them apart."""

    index: int
    clean: tuple[int, ...]
    """Token ids."""
    corrupt: tuple[int, ...]
    clean_tokens: tuple[str, ...]
    """Each token as text."""
    corrupt_tokens: tuple[str, ...]
    metric: Metric
    """The baseline of a KL is the input "baseline <index>"."""
    baseline: Side | None = None
    """The side that a KL is measured against, as it is without any edit."""

    def name(self, side: Side) -> str:
        """The input's name in every request: "clean 0"."""
        return f"{side} {self.index}"

    def ids(self, side: Side) -> tuple[int, ...]:
        """Token ids of one side."""
        return self.clean if side == "clean" else self.corrupt

    def tokens(self, side: Side) -> tuple[str, ...]:
        """Token texts of one side."""
        return self.clean_tokens if side == "clean" else self.corrupt_tokens

    def input(self, side: Side, *, source_only: bool = False) -> Input:
        """One side as an input of a request."""
        return Input(token_ids=self.ids(side), name=self.name(side), source_only=source_only)

    @property
    def baselines(self) -> list[Input]:
        """The input that a KL compares with, which no hook may touch; empty for other metrics."""
        if self.baseline is None:
            return []
        return [Input(token_ids=self.ids(self.baseline), name=f"baseline {self.index}", source_only=True)]

    def target(self, side: Side) -> Target:
        """The metric, measured on one side."""
        return Target(self.metric, (self.name(side),))

    def __len__(self) -> int:
        return len(self.clean)


def make_pairs(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    metric: Metric | Sequence[Metric],
    *,
    equal: bool = True,
    model: str = "",
) -> tuple[Pair, ...]:
    """Tokenise and check pairs of prompts. `metric`: one for all, or one a pair.

    The baseline of a `Kl` is "clean" or "corrupt": that side of its own pair, as it is. `equal` False: the two may differ
    in length, for whoever pairs their positions otherwise.
    Raises InvalidArgument when the prompts do not pair, in number or in tokens.
    """
    sides = [to_inputs(clean), to_inputs(corrupt)]
    if len(sides[0]) != len(sides[1]):
        raise InvalidArgument(
            f"{len(sides[0])} clean prompts and {len(sides[1])} corrupt ones; every clean prompt needs its own corrupt one"
        )
    n = len(sides[0])
    if not 1 <= n <= MAX_PAIRS:
        raise InvalidArgument(f"{n} pairs of prompts; one call takes 1 to {MAX_PAIRS}, so split them")
    metrics = _metrics(metric, n)
    pairs: list[Pair] = []
    for index, (one, other) in enumerate(zip(*sides, strict=True)):
        found = [client.tokenize(item, model=model) for item in (one, other)]
        if equal and len(found[0].token_ids) != len(found[1].token_ids):
            raise InvalidArgument(
                f"pair {index}: the clean prompt has {len(found[0].token_ids)} tokens and the corrupt one "
                f"{len(found[1].token_ids)} ({found[0].text!r}, {found[1].text!r}); patching needs equal lengths, so "
                'replace words by words of as many tokens, or say what pairs: attribution.patch(…, align="tokens"), "end", '
                'or by roles, align={"subject": (" Mary", " John Smith")}; or positions=[-1], counted from either end'
            )
        pair = Pair(index, found[0].token_ids, found[1].token_ids, found[0].tokens, found[1].tokens, metrics[index])
        pairs.append(_with_own_baseline(pair))
    return tuple(pairs)


def same_length(pairs: Sequence[Pair], why: str) -> int:
    """The token count that all pairs share. Raises InvalidArgument when they differ."""
    lengths = sorted({len(pair) for pair in pairs})
    if len(lengths) != 1:
        raise InvalidArgument(
            f"the pairs have {', '.join(map(str, lengths))} tokens; {why} needs prompts of one length: call it once a "
            "length, or choose positions that mean the same in all of them (negative ones count from the end)"
        )
    return lengths[0]


def check_direction(direction: str) -> tuple[Side, Side]:
    """(the side that runs, the side that values come from). Raises InvalidArgument for an unknown direction."""
    if direction not in ("denoise", "noise"):
        raise InvalidArgument(f"direction {direction!r}; allowed: denoise (corrupt runs, clean is put in), noise")
    return ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")


def _metrics(metric: Metric | Sequence[Metric], n: int) -> list[Metric]:
    if not isinstance(metric, Sequence):
        return [metric] * n
    if len(metric) != n:
        raise InvalidArgument(f"{len(metric)} metrics for {n} pairs; give one for all, or one a pair")
    return list(metric)


def _with_own_baseline(pair: Pair) -> Pair:
    metric = pair.metric
    parts = metric.metrics if isinstance(metric, WeightedSum) else (metric,)
    sides = {part.baseline for part in parts if isinstance(part, Kl)}
    if not sides:
        return pair
    if len(sides) > 1 or not sides <= {"clean", "corrupt"}:
        named = ", ".join(repr(side) for side in sorted(sides))
        raise InvalidArgument(f'a Kl between pairs has the baseline "clean" or "corrupt", got {named}')
    [side] = sides
    own = tuple(replace(p, baseline=f"baseline {pair.index}") if isinstance(p, Kl) else p for p in parts)
    return replace(
        pair, metric=replace(metric, metrics=own) if isinstance(metric, WeightedSum) else own[0], baseline=side
    )
