"""Whether generation through the library's own cache is what a plain forward of the whole computes, tried on the model itself.

Its prompts are read in pieces only where that is seen to change nothing, and sites that do not come while generating as
they do in a run are left to runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence as SequenceOf
from dataclasses import replace

import numpy as np

from ..protos.edits import Scale
from ..protos.errors import ProbewireError
from ..protos.model import Sampling, SiteInfo
from ..protos.sites import ATTENTION_SITES
from ..protos.spec import Capture, Hook, Plan
from ..protos.tensors import Array
from .alone_engine import AloneEngine
from .hooks.base import Backend
from .hooks.plan import bind
from .hooks.sequence import Rows, Sequence
from .model.tolerances import ENGINE_TOLERANCE

__all__ = ["N_NEW", "ROUNDING", "Found", "Trial", "alone_fault", "errors_of"]

LENGTHS, N_NEW, SMALL_CHUNK = (5, 11), 3, 4
BEYOND_A_CHUNK = 17
"""Rows of the second piece of a prompt that is read in pieces of the usual size."""

ROUNDING = {"float32": 1e-4, "float64": 1e-6}
"""Relative error up to which two orders of a sum are to blame: above it the library steps otherwise than it runs, and that is told."""

Found = dict[tuple[str, int], Array]
"""(site, position) → its row."""


def alone_fault(backend: Backend, window: int = 0) -> str:
    """Why this engine cannot be trusted with the model either, or empty; what it must not do, it does not from then on.

    `window`: positions that some layers see, of a model that cannot be made smaller to be tried past them.
    """
    engine = backend.engine
    assert isinstance(engine, AloneEngine)
    trial = Trial(backend, engine)
    asked = backend.limits.chunk_tokens
    long = (*trial.longer(asked), *(trial.longer(window) if window else ()))
    in_pieces = trial.fault(LENGTHS, SMALL_CHUNK) or trial.fault(long, asked)
    if in_pieces:
        trial.worst = 0.0
        if fault := trial.fault((*LENGTHS, *long), 0):
            return fault
        _remark(backend, f"each prompt is read whole, in one forward: tried in pieces, {in_pieces}")
    if trial.worst > ROUNDING.get(backend.info.dtype, np.inf):
        _remark(
            backend,
            f"logits while generating were seen to differ from a run's by {trial.worst:.1g} of the largest, more than "
            "rounding explains: where two tokens are nearly as likely, the other may come",
        )
    _leave_to_runs(backend, trial.sites_that_fail())
    return ""


def _remark(backend: Backend, what: str) -> None:
    noted = backend.info.generate_note
    backend.info = replace(backend.info, generate_note=f"{noted}; {what}" if noted else what)


def _leave_to_runs(backend: Backend, faults: dict[str, str]) -> None:
    def told(site: SiteInfo) -> SiteInfo:
        return replace(site, generate=False, note=faults[site.name]) if site.name in faults else site

    backend.info = replace(backend.info, sites=tuple(map(told, backend.info.sites)))


class Trial:
    """Generations beside each other, each held against one plain forward over its tokens."""

    def __init__(self, backend: Backend, engine: AloneEngine) -> None:
        self.backend, self.engine, self.info = backend, engine, backend.info
        self.rng = np.random.default_rng(0)
        self.tolerance = ENGINE_TOLERANCE[backend.info.dtype]
        self.worst = 0.0
        """Relative error of logits in what has passed."""

    def longer(self, chunk: int) -> tuple[int, ...]:
        """Of a prompt that takes two pieces; none where no such prompt fits."""
        n = chunk + BEYOND_A_CHUNK
        return (n,) if self.engine.reason_not_to_fit(n + N_NEW) is None else ()

    def fault(self, lengths: SequenceOf[int], chunk_rows: int) -> str:
        """What differs, of one plain and one edited generation of each length, or empty. Leaves the engine with the chunk."""
        self.engine.turns.chunk_rows = chunk_rows
        logits = Hook("logits", capture=Capture())
        plans = [Plan((logits,)), *([Plan((edit, logits))] if (edit := self.edit()) else [])]
        for n in lengths:
            try:
                error = self.error([(n, plan) for plan in plans])["logits"]
            except ProbewireError as failed:
                return f"generation fails: {failed.message}"
            if not error <= self.tolerance:
                return (
                    f"its logits differ from those of one forward over the same tokens by {error:.2g} of the largest "
                    f"({self.tolerance:.0e} is allowed)"
                )
            self.worst = max(self.worst, error)
        return ""

    def sites_that_fail(self) -> dict[str, str]:
        """Site → what is wrong with it in generations."""
        names = [site.name for site in self.info.sites if site.generate and site.name != "logits"]
        faults = self._read(names) if names else {}
        for group in (("k", "v"), tuple(ATTENTION_SITES)):
            left = [name for name in group if name in names and name not in faults]
            hooks = [Hook(site, edit=Scale(0.5)) for name in left for site in self._ends(name)]
            plan = Plan((*hooks, Hook("logits", capture=Capture())))
            if left and (fault := self._differs([(LENGTHS[1], plan)], ("logits",))):
                faults |= dict.fromkeys(left, f"an edit there, while generating, {fault['logits']}; use a run")
        return faults

    def _read(self, names: list[str]) -> dict[str, str]:
        plan = Plan(tuple(Hook(site, capture=Capture()) for name in names for site in self.all_of(name)))
        faults = self._differs([(LENGTHS[1], plan)], names)
        if len(names) > 1 and set(faults) == set(names):  # one may have failed the whole request
            return {site: why for name in names for site, why in self._read([name]).items()}
        return {
            name: f"while generating it {why}; use a run" if len(names) > 1 else why for name, why in faults.items()
        }

    def _differs(self, asked: list[tuple[int, Plan]], names: Iterable[str]) -> dict[str, str]:
        try:
            errors = self.error(asked)
        except ProbewireError as failed:
            return dict.fromkeys(names, f"fails: {failed.message}")
        return {
            name: f"differs from a run by {errors.get(name, np.inf):.2g} (relative)"
            for name in names
            if not errors.get(name, np.inf) <= self.tolerance
        }

    def edit(self) -> Hook | None:
        """Of every row, in the middle of the model: what it changes must be carried on."""
        site = next((site for site in self.info.sites if site.name in ("resid_pre", "resid_post")), None)
        return None if site is None else Hook(f"{site.name}.{self.info.n_layers // 2}", edit=Scale(0.5))

    def all_of(self, name: str) -> list[str]:
        """A site at every layer that has it."""
        site = self.info.site(name)
        assert site is not None
        return [name] if site.layers is None else [f"{name}.{layer}" for layer in site.layers]

    def _ends(self, name: str) -> list[str]:
        every = self.all_of(name)
        return list(dict.fromkeys((every[0], every[-1])))

    def error(self, asked: SequenceOf[tuple[int, Plan]]) -> dict[str, float]:
        """Kind of site → largest relative error of its rows, over generations of prompts of given lengths."""
        vocab = min(self.info.vocab_size, 1000)
        prompts = [self.rng.integers(1, vocab, size=n).tolist() for n, _ in asked]
        plans = [plan for _, plan in asked]
        made = [self.sequence(f"check{i}", *each, new=N_NEW) for i, each in enumerate(zip(prompts, plans, strict=True))]
        worst = dict[str, float]()
        for sequence, found, plan in zip(made, self.generated(made), plans, strict=True):
            forced = self.sequence("forced", sequence.tokens[:-1], plan, sequence.prompt_length)
            [result] = self.backend.run([forced])
            if result.error is not None:
                raise result.error
            for kind, error in errors_of(found, _rows(result.rows), len(forced.tokens), sequence.prompt_length).items():
                worst[kind] = max(worst.get(kind, 0.0), error)
        return worst

    def sequence(
        self, name: str, tokens: list[int], plan: Plan, prompt_length: int | None = None, *, new: int = 0
    ) -> Sequence:
        """Bound: to be run, or to generate so many new tokens."""
        length = prompt_length or len(tokens)
        bound = bind(
            plan,
            self.backend,
            mode="generate" if new else "run",
            input_name="input",
            tokens=tokens,
            prompt_length=length,
            n_rows=len(tokens) + max(new - 1, 0),
        )
        self.backend.bind(bound)
        return Sequence(name, list(tokens), length, bound, Sampling(max_new_tokens=max(new, 1)))

    def generated(self, sequences: list[Sequence]) -> list[Found]:
        """A few tokens of each, beside each other as far as there are slots."""
        waiting, rows = list(sequences), {sequence.id: list[Rows]() for sequence in sequences}
        left = set(rows)
        try:
            while left:
                waiting = [sequence for sequence in waiting if not self.engine.admit(sequence)]
                for result in self.engine.step():
                    if result.error is not None:
                        raise result.error
                    rows[result.sequence.id] += result.rows
                    if result.sequence.n_generated >= result.sequence.sampling.max_new_tokens:
                        self.engine.remove(result.sequence)
                        left.discard(result.sequence.id)
        finally:
            self.engine.close()
        return [_rows(rows[sequence.id]) for sequence in sequences]


def _rows(rows: Iterable[Rows]) -> Found:
    out: Found = {}
    for found in rows:
        for site, values in zip(found.sites, found.values, strict=True):
            by_row = np.swapaxes(values, 0, 1) if site.partition(".")[0] in ATTENTION_SITES else values
            out |= {(site, position): row for position, row in zip(found.positions, by_row, strict=True)}
    return out


def errors_of(found: Found, expected: Found, n_rows: int, prompt_length: int) -> dict[str, float]:
    """Kind of site → error, relative to the largest value that the site has; infinite where rows are missing."""
    sites, out = {site for site, _ in expected}, dict[str, float]()
    for site in sites:
        kind = site.partition(".")[0]
        first = prompt_length - 1 if kind == "logits" else 0
        out[kind] = max(out.get(kind, 0.0), _site_error(site, found, expected, range(first, n_rows)))
    return out


def _site_error(site: str, found: Found, expected: Found, positions: range) -> float:
    worst, largest = 0.0, 1e-9
    for position in positions:
        got, want = found.get((site, position)), expected[site, position]
        if got is None:
            return np.inf
        n = min(got.shape[-1], want.shape[-1])  # keys behind the row, which neither sees
        got, want = (np.asarray(row[..., :n], dtype=np.float64) for row in (got, want))
        finite = np.isfinite(want)
        if got.shape != want.shape or (np.isfinite(got) != finite).any():
            return np.inf
        worst = max(worst, float(np.abs(got[finite] - want[finite]).max(initial=0.0)))
        largest = max(largest, float(np.abs(want[finite]).max(initial=0.0)))
    return worst / largest
