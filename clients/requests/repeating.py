"""Asking again what a result is the answer to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar, cast

from ...protos.errors import FailedPrecondition
from ...protos.model import ModelInfo, Started
from ...protos.service import Service
from ..calls import generation_of, gradients_of, run_of, sweep_of
from ..results.results import Generation, Result
from ..results.sweep import Sweep
from .answering import OnStarted
from .asked import Asked
from .steps import Caller, Steps, ask

__all__ = ["repeat"]

R = TypeVar("R", bound=Result | Sweep)


def repeat(client: Caller, result: R, *, model: str = "", force: bool = False, progress: bool = True) -> Steps[R]:
    """Ask again what a result answers, loaded from a file or not; a generation is sampled with the seeds it had.

    `model`: the id it has by now, where that is another one. Raises FailedPrecondition when the model's hash, an SAE or
    the prompts' tokens are not what they were, and for a result that followed a live session, unless `force`.
    """
    asked, before = result.asked, result.started
    if asked.session and not force:
        raise FailedPrecondition(
            f"the result followed the live session {asked.session!r}, whose hooks it does not hold; ask again with these "
            "hooks as your own, or say force=True to follow the session as it is now"
        )
    info = yield from ask(Service.describe, model or before.model)
    if not force:
        _require_same_model(before, info)
    asked = replace(
        asked,
        model=info.id,
        sampling=replace(asked.sampling, seed=_seed(result)),
        vectors_of=() if force else asked.vectors_of,
    )

    def look(started: Started) -> None:
        if not force:
            _require_same(before, started)

    return cast("R", (yield from _again(asked, result, progress, look)))


def _again(asked: Asked, result: Result | Sweep, progress: bool, look: OnStarted) -> Steps[Result | Sweep]:
    if isinstance(result, Sweep):
        return (yield from sweep_of(asked, result.axes, progress=progress, on_started=look))
    if asked.operation == "run":
        return (yield from run_of(asked, progress=progress, on_started=look))
    if asked.operation == "gradients":
        return (yield from gradients_of(asked, progress=progress, on_started=look))
    return (yield from generation_of(asked, progress=progress, on_started=look))


def _seed(result: Result | Sweep) -> int | None:
    """That of the request: input i samples with seed + i."""
    if not isinstance(result, Generation):
        return None
    return next(
        (item.seed - i for i, (name, item) in enumerate(result.inputs.items()) if name in result.answered), None
    )


def _require_same_model(before: Started, info: ModelInfo) -> None:
    if info.model_hash != before.model_hash:
        raise FailedPrecondition(
            f"the result is of model {before.model} ({before.model_hash}), and {info.id} is another one "
            f"({info.model_hash}); load the same weights, name the model that has them, or say force=True"
        )


def _require_same(before: Started, now: Started) -> None:
    """Raise FailedPrecondition when an SAE or a prompt's tokens are other ones than before."""
    saes, known = dict(_saes(now)), dict(_saes(before))
    other = [name for name, found in known.items() if saes.get(name, found) != found]
    if other:
        raise FailedPrecondition(
            f"the SAEs {other} have other weights than when the result was made; load those again, or say force=True"
        )
    tokens = {begun.name: begun.token_ids for begun in before.inputs}
    changed = [begun.name for begun in now.inputs if tokens.get(begun.name, begun.token_ids) != begun.token_ids]
    if changed:
        raise FailedPrecondition(
            f"the inputs {changed[:8]} are other tokens than when the result was made: the tokenizer or its template has "
            "changed; ask with the token ids (result.inputs[name].prompt_ids), or say force=True"
        )


def _saes(started: Started) -> Iterator[tuple[str, str]]:
    for hook in started.hooks:
        yield from hook.saes.items()
