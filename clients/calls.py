"""What a client can have computed: prompts and hooks in, results out. Each call is a generator of steps (steps.py).

Calls take any number of inputs: more than one request takes are cut into several, asked one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from ..protos.errors import InvalidArgument
from ..protos.gradients import IntegratedPath
from ..protos.model import MAX_INPUTS, Started
from ..protos.service import Service
from ..protos.spec import Plan
from ..protos.variants.use import checked_uses
from .progress import progress_bar
from .requests.answering import OnStarted, answered
from .requests.asked import Asked
from .requests.hooks import HookLike, Hooks, planned
from .requests.prompts import Prompts, to_inputs
from .requests.sampling import SamplingOptions, to_sampling
from .requests.steps import Caller, Steps, ask
from .requests.targets import Targets, to_targets
from .requests.variants import Variants
from .results.collecting import Collector, SweepCollector
from .results.results import Generation, Gradients, InputResult, Run
from .results.sweep import Sweep, sweep_axes
from .session import SessionView

__all__ = [
    "Captured",
    "generate",
    "generate_with_activations",
    "generation_of",
    "gradients",
    "gradients_of",
    "run",
    "run_of",
    "stream",
    "sweep",
    "sweep_of",
]

Captured = str | HookLike | Sequence[str | HookLike]
"""What to read: site names or patterns ("resid_post.10", "resid_post.*"), or hooks that capture."""


def generate(
    client: Caller,
    prompt: Prompts,
    *,
    hooks: Hooks = (),
    capture: Captured = (),
    variant: Variants = (),
    session: SessionView | str = "",
    model: str = "",
    progress: bool = False,
    **sampling: Unpack[SamplingOptions],
) -> Steps[Generation]:
    """Sample a continuation of each input, with hooks at work on the way: those of the `session` as it goes, then these."""
    return generation_of(_generation(prompt, hooks, capture, variant, session, model, sampling), progress=progress)


def generate_with_activations(
    client: Caller,
    prompt_or_messages: Prompts,
    capture: Captured = (),
    *,
    hooks: Hooks = (),
    variant: Variants = (),
    session: SessionView | str = "",
    model: str = "",
    progress: bool = False,
    **sampling: Unpack[SamplingOptions],
) -> Steps[Generation]:
    """As `generate`, and refuses a request that captures nothing: `capture=["resid_post.*"]`."""
    asked = _generation(prompt_or_messages, hooks, capture, variant, session, model, sampling)
    if not _captures(asked.plan):
        followed = (yield from ask(Service.session, asked.session)).plan if asked.session else Plan()
        if not _captures(followed):
            raise InvalidArgument('generate_with_activations captures nothing; name sites: capture=["resid_post.*"]')
    return (yield from generation_of(asked, progress=progress))


def stream(
    client: Caller,
    prompt: Prompts,
    *,
    hooks: Hooks = (),
    capture: Captured = (),
    variant: Variants = (),
    session: SessionView | str = "",
    model: str = "",
    keep: bool = True,
    **sampling: Unpack[SamplingOptions],
) -> tuple[Asked, bool]:
    """Steps as they come: text and tensors of each token. Closing the stream cancels the request.

    At most 64 inputs. At its end the stream has a `result`, for which it keeps what came; with `keep` False it forgets
    the tensors of each step, for streams longer than memory.
    """
    return _generation(prompt, hooks, capture, variant, session, model, sampling), keep


def run(
    client: Caller,
    prompt: Prompts,
    *,
    capture: Captured = (),
    hooks: Hooks = (),
    variant: Variants = (),
    model: str = "",
    progress: bool = True,
) -> Steps[Run]:
    """One forward pass over each input, and what the hooks read in it. Any number of inputs; a long list has a bar."""
    plan, vectors_of = planned(hooks, capture)
    uses = checked_uses(variant, "the request")
    asked = Asked("run", to_inputs(prompt), plan, model, variants=uses, vectors_of=vectors_of)
    return run_of(asked, progress=progress)


def gradients(
    client: Caller,
    prompt: Prompts,
    target: Targets,
    *,
    at: Captured = (),
    capture: Captured = (),
    hooks: Hooks = (),
    rules: Sequence[str] = (),
    direct: bool = False,
    path: IntegratedPath | None = None,
    variant: Variants = (),
    model: str = "",
    progress: bool = True,
) -> Steps[Gradients]:
    """The gradient of a metric at sites of each input: one forward, one backward.

    `at`: sites whose gradient comes back; `capture`: sites whose value does, from the same forward. `rules`: of the
    backward pass, any of ln, identity, half, ah (protos/gradients.py says what they are; with all four, value times
    gradient is RelP). `direct`: block every MLP but the target's own. `path`: average the gradient along a line.
    Every input needs one target; for several targets of one prompt name it several times.
    """
    plan, vectors_of = planned(hooks, capture, at)
    if path is not None and not isinstance(path, IntegratedPath):  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks
        raise InvalidArgument(
            f"path is an IntegratedPath (a line to average along, not sites: those go in at), got {path!r}"
        )
    asked = Asked(
        "gradients",
        to_inputs(prompt),
        plan,
        model,
        targets=to_targets(target),
        rules=(rules,) if isinstance(rules, str) else tuple(rules),
        direct=direct,
        path=path,
        variants=checked_uses(variant, "the request"),
        vectors_of=vectors_of,
    )
    return gradients_of(asked, progress=progress)


def sweep(
    client: Caller,
    prompt: Prompts,
    target: Targets,
    plans: Sequence[Hooks],
    *,
    hooks: Hooks = (),
    axes: Mapping[str, Sequence[Any]] | None = None,
    share: bool = True,
    progress: bool = True,
    variant: Variants = (),
    model: str = "",
) -> Steps[Sweep]:
    """What each of many plans does to a metric of each input: every layer, position, head …

    Every plan (a list of hooks that edit) runs on every input, after `hooks`, which are common to all. `axes` names
    what the plans lie along, in C order: {"layer": [...], "position": [...]}. `share` reuses what no edit can
    change; the numbers are the same without.
    """
    inputs, named = to_inputs(prompt), sweep_axes(axes, len(plans))
    base, listed = planned(hooks), [planned(plan) for plan in plans]
    asked = Asked(
        "sweep",
        inputs,
        base[0],
        model,
        targets=to_targets(target),
        plans=tuple(plan for plan, _ in listed),
        share=share,
        variants=checked_uses(variant, "the sweep"),
        vectors_of=tuple({found: None for _, models in (base, *listed) for found in models}),
    )
    return sweep_of(asked, named, progress=progress)


# ---- the same, of what was asked already -----------------------------------------------------------------------------


def generation_of(asked: Asked, *, progress: bool = False, on_started: OnStarted | None = None) -> Steps[Generation]:
    """Ask for a generation."""
    found, total = Collector(), len(asked.answered) * asked.sampling.max_new_tokens
    with progress_bar("generating", "tokens", show=progress) as bar:
        move = _on_change(lambda: found.n_tokens, lambda done: bar(done, total))
        yield from answered(asked, found, on_started=on_started, on_event=move)
    return Generation(*found.whole(asked), asked)


def run_of(asked: Asked, *, progress: bool = True, on_started: OnStarted | None = None) -> Steps[Run]:
    """Ask for a run."""
    return Run(*(yield from _collected("running", asked, progress, on_started)), asked)


def gradients_of(asked: Asked, *, progress: bool = True, on_started: OnStarted | None = None) -> Steps[Gradients]:
    """Ask for gradients."""
    return Gradients(*(yield from _collected("gradients", asked, progress, on_started)), asked)


def sweep_of(
    asked: Asked, axes: Mapping[str, Sequence[Any]], *, progress: bool = True, on_started: OnStarted | None = None
) -> Steps[Sweep]:
    """Ask for a sweep."""
    found, total = SweepCollector(), len(asked.answered) * len(asked.plans)
    with progress_bar("sweeping", "plans", show=progress) as bar:
        move = _on_change(lambda: found.n_measured, lambda done: bar(done, total))
        yield from answered(asked, found, on_started=on_started, on_event=move)
    return Sweep(*found.whole(asked), axes, asked)


def _collected(
    label: str, asked: Asked, progress: bool, on_started: OnStarted | None
) -> Steps[tuple[Started, dict[str, InputResult]]]:
    """Started and the results by input. A bar where several requests are needed; one is over too soon for it."""
    found, total = Collector(), len(asked.answered)
    if len(asked.inputs) <= MAX_INPUTS:
        yield from answered(asked, found, on_started=on_started)
        return found.whole(asked)
    with progress_bar(label, "prompts", show=progress) as bar:
        move = _on_change(lambda: found.n_finished, lambda done: bar(done, total))
        yield from answered(asked, found, on_started=on_started, on_event=move)
    return found.whole(asked)


def _on_change(count: Callable[[], int], move: Callable[[int], None]) -> Callable[[], None]:
    """Calls `move` whenever the count is another one than before; 0 at first."""
    last = 0

    def look() -> None:
        nonlocal last
        if (now := count()) != last:
            last = now
            move(now)

    return look


def _generation(
    prompt: Prompts,
    hooks: Hooks,
    capture: Captured,
    variant: Variants,
    session: SessionView | str,
    model: str,
    sampling: SamplingOptions,
) -> Asked:
    if isinstance(session, SessionView):
        session, model = session.id, model or session.model
    plan, vectors_of = planned(hooks, capture)
    return Asked(
        "generate",
        to_inputs(prompt),
        plan,
        model,
        to_sampling(sampling),
        session,
        variants=checked_uses(variant, "the request"),
        vectors_of=vectors_of,
    )


def _captures(plan: Plan) -> bool:
    return any(hook.capture for hook in plan.hooks)
