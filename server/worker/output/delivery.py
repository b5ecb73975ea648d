"""A request's way out: what the model's thread found becomes events, in order, for one reader."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence as SequenceOf
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from ....backends.hooks.captures import flush_reductions
from ....backends.hooks.sequence import Rows, Sequence, StepResult
from ....backends.model.tokenizer import Tokenizer
from ....protos.errors import ProbewireError
from ....protos.metrics import Measured
from ....protos.model import Event, Finished, Revised, StoredCapture, TensorFrame, Timings, Token, TokenLogprob, Usage
from ....protos.tensors import Array, Tensor
from ...auth.callers import Caller
from ...memory import owned
from ...state.captures import CaptureStore, Kept, Reservation
from ..input.prepared import Prepared, PreparedInput
from ..sessions import LiveSessions
from .text import TextStream

__all__ = ["ActiveRequest", "Sink"]

log = logging.getLogger(__name__)

Reason = Literal["stop", "length", "eos", "run"]
HIGH_WATER_BYTES = 8 << 20
"""A reader this far behind is left out of the coming steps."""
LOW_WATER_BYTES = 2 << 20
"""… until it has caught up to here."""


class Sink(Protocol):
    """Where one request's events go. `put` and `end` are called on the model's thread and never wait."""

    def put(self, events: list[Event]) -> None:
        """Events of one step."""
        ...

    def end(self, error: ProbewireError | None) -> None:
        """No more events: a good end, or why not."""
        ...

    @property
    def backlog_bytes(self) -> int:
        """What has been put and not been read."""
        ...


class ModelThread(Protocol):
    """What a job asks of the scheduler."""

    def later(self, command: Callable[[], None]) -> None:
        """Run a function on the model's thread."""
        ...

    def drop(self, job: ActiveRequest, error: ProbewireError) -> None:
        """End a job wherever it is; on the model's thread."""
        ...


class ActiveRequest:
    """One request on the model's thread."""

    def __init__(
        self,
        prepared: Prepared,
        caller: Caller,
        sink: Sink,
        tokenizer: Tokenizer,
        store: CaptureStore,
        *,
        sessions: LiveSessions,
        reservation: Reservation | None,
        thread: ModelThread,
        prepare_again: Callable[[], Prepared],
    ) -> None:
        """`prepare_again` makes the request ready anew, under what its session has become."""
        self.prepared, self.caller = prepared, caller
        self.pending: list[PreparedInput] = []
        self.remaining = 0
        """Inputs that have not finished."""
        self.ended = False
        self._sink, self._tokenizer, self._store = sink, tokenizer, store
        self._sessions, self._reservation, self._thread = sessions, reservation, thread
        self._prepare_again = prepare_again
        self._started = False
        self._submitted_s = time.perf_counter()
        self._outputs: dict[str, _Output] = {}
        self._writing = 0
        """Inputs whose captures are on their way to the disk."""
        self._buffer: list[Event] = []

    def catch_up(self) -> None:
        """Take over what the session has become since the request was prepared. Raises when it cannot be honoured."""
        session = self._sessions.find(self.prepared.session)
        if session is not None and session.revision > self.prepared.started.revision:
            self.prepared = self._prepare_again()

    def start(self) -> None:
        """Say that the request was accepted; once."""
        if not self._started:
            self._started = True
            self._buffer.append(self.prepared.started)
            self.send()

    def admitted(self, item: PreparedInput) -> None:
        """An input has entered the batch, or its run begins."""
        assert item.sequence is not None
        item.sequence.begun = True
        self._outputs[item.sequence.id] = _Output(item, self._tokenizer, self.prepared.started.revision)

    def take_source_rows(self, item: PreparedInput, result: StepResult) -> None:
        """Keep what a source run captured for the inputs that read it."""
        rows: dict[str, dict[int, Array]] = {}
        for found in result.rows:
            for site, values in zip(found.sites, owned(found.values), strict=True):
                values = np.swapaxes(values, 0, 1) if site.startswith(("attn_scores", "attn_probs")) else values
                rows.setdefault(site, {}).update(zip(found.positions, values, strict=True))
        self.prepared.rows[item.item.name] = rows

    def deliver_step(self, result: StepResult) -> bool:
        """Queue a step's events; True when the sequence is done."""
        output = self._outputs[result.sequence.id]
        self._follow(output, result)
        self._take_rows(output, result.sequence, result.rows, result.revision)
        if result.token is None:
            return False
        self._buffer.append(output.token(result))
        reason = self._reason(output, result)
        if reason is None:
            return False
        self._finish(output, reason)
        return True

    def _reason(self, output: _Output, result: StepResult) -> Reason | None:
        sampling = result.sequence.sampling
        if output.text.stopped:
            return "stop"
        if result.token in self._tokenizer.end_ids and not sampling.ignore_eos:
            return "eos"
        return "length" if result.sequence.n_generated >= sampling.max_new_tokens else None

    def deliver_run(self, item: PreparedInput, result: StepResult) -> None:
        """Queue a run's frames and its end."""
        assert item.sequence is not None
        output = self._outputs[item.sequence.id]
        output.first_token_s = time.perf_counter() - output.admitted_s
        if result.measured:
            self._buffer.append(Measured(output.name, Tensor.of(np.array(result.measured, dtype=np.float64)[:, None])))
        self._take_rows(output, item.sequence, result.rows, result.revision)
        self._finish(output, "run")
        self.send()

    def deliver_measured(
        self, item: PreparedInput, plans: SequenceOf[int], values: SequenceOf[tuple[float, ...]], *, done: bool
    ) -> None:
        """Queue what the next plans of a sweep came to."""
        assert item.sequence is not None
        output = self._outputs[item.sequence.id]
        output.first_token_s = output.first_token_s or time.perf_counter() - output.admitted_s
        self._buffer.append(Measured(output.name, Tensor.of(np.array(values, dtype=np.float64)), tuple(plans)))
        if done:
            self._finish(output, "run")
        self.send()

    def _follow(self, output: _Output, result: StepResult) -> None:
        """Hand out what a plan that is over had gathered, and say that another has begun."""
        sequence = result.sequence
        while sequence.retired and sequence.retired[0].revision < result.revision:
            old = sequence.retired.pop(0)
            self._take_rows(output, sequence, flush_reductions(old), old.revision)
        if result.revision != output.revision:
            output.revision = result.revision
            self._buffer.append(self._revised(output, result.revision))

    def _revised(self, output: _Output, revision: int) -> Revised:
        prepared = self.prepared
        return Revised(output.name, revision, prepared.hooks(revision), prepared.variants(revision))

    def _finish(self, output: _Output, reason: Reason) -> None:
        sequence = output.sequence
        output.item.ended = True
        rest = output.text.flush() if output.n_tokens and reason != "stop" else ""
        if rest and isinstance(last := self._buffer[-1], Token):  # the token just queued: held-back text is its own
            self._buffer[-1] = replace(last, text=last.text + rest)
        for plan in (*sequence.retired, sequence.plan):
            self._take_rows(output, sequence, flush_reductions(plan), plan.revision)
        if output.kept:
            self._writing += 1
            self._store.put_later(
                self.caller.user.name,
                self._kept(output),
                lambda stored: self._thread.later(lambda: self._stored(output, reason, stored)),
            )
        else:
            self._done(output, reason, ())

    def _stored(self, output: _Output, reason: Reason, stored: tuple[StoredCapture, ...] | ProbewireError) -> None:
        """The captures of an input are on the disk, or could not be put there."""
        self._writing -= 1
        if isinstance(stored, ProbewireError):
            self._thread.drop(self, stored)
        elif self.ended:  # the caller has left meanwhile
            for item in stored:
                with contextlib.suppress(ProbewireError):
                    self._store.delete(self.caller.user.name, item.id)
            self._release()
        else:
            self._done(output, reason, stored)
            self.send()

    def _done(self, output: _Output, reason: Reason, stored: tuple[StoredCapture, ...]) -> None:
        self._buffer.append(output.finished(reason, self._submitted_s, stored))
        self.remaining -= 1
        if self.remaining == 0:
            self._close(None)

    def _take_rows(
        self, output: _Output, sequence: Sequence, rows: tuple[Rows, ...] | list[Rows], revision: int
    ) -> None:
        hooks = self.prepared.plan_at(revision).hooks
        for found in rows:
            hook = hooks[found.hook]
            if hook.capture is not None and hook.capture.store:
                output.kept.append(replace(found, values=owned(found.values)))
            else:
                self._buffer.append(
                    _frame(
                        output.name,
                        hook.id or f"hook{found.hook}",
                        sequence,
                        found,
                        revision,
                        self.prepared.since(found.hook, revision),
                    )
                )

    def _kept(self, output: _Output) -> list[Kept]:
        """What was captured with `store`, a capture a site."""
        parts: dict[tuple[int, str], list[tuple[tuple[int, ...], Array]]] = {}
        for found in output.kept:
            for site, values in zip(found.sites, found.values, strict=True):
                parts.setdefault((found.hook, site), []).append((found.positions, values))
        kept: list[Kept] = []
        used = self.prepared.variants(output.sequence.plan.revision)
        hashes = tuple(dict.fromkeys(one.hash for one in used if output.name in one.inputs))
        for (_, site), pieces in parts.items():
            positions = tuple(p for piece, _ in pieces for p in piece)
            whole = pieces[0][1] if len(pieces) == 1 else np.concatenate([values for _, values in pieces])
            kept.append(Kept(self.prepared.started.model, site, output.name, positions, whole, hashes))
        return kept

    def fail(self, error: ProbewireError) -> None:
        """End with an error."""
        self._close(error)

    def send(self) -> None:
        """Hand over what has gathered."""
        if self._buffer and not self.ended:
            events, self._buffer = self._buffer, []
            self._sink.put(events)

    def _close(self, error: ProbewireError | None) -> None:
        self.send()
        self.ended = True
        self._release()
        self._sink.end(error)

    def _release(self) -> None:
        """Let go of the room for captures, once nothing is being written into it any more."""
        if self._writing:
            return
        try:
            self._store.release(self._reservation)
        except ProbewireError as fault:  # the model's thread goes on; what is reserved is let go of at the next start
            log.warning("room for captures of request %s stays reserved: %s", self.prepared.id, fault.message)

    def is_behind(self, *, held: bool) -> bool:
        """Whether its reader is too slow for more; with hysteresis."""
        return self._sink.backlog_bytes > (LOW_WATER_BYTES if held else HIGH_WATER_BYTES)


class _Output:
    """One input's outcome as it grows."""

    def __init__(self, item: PreparedInput, tokenizer: Tokenizer, revision: int) -> None:
        assert item.sequence is not None
        self.item, self.name, self.sequence = item, item.item.name, item.sequence
        self.text = TextStream(tokenizer, item.sequence.sampling.stop, item.tokens)
        self.tokenizer = tokenizer
        self.kept: list[Rows] = []
        self.revision = revision
        self.admitted_s = time.perf_counter()
        self.first_token_s = 0.0
        self.n_tokens = 0

    def token(self, result: StepResult) -> Token:
        """The event of a sampled token."""
        assert result.token is not None
        if self.n_tokens == 0:
            self.first_token_s = time.perf_counter() - self.admitted_s
        index, self.n_tokens = self.n_tokens, self.n_tokens + 1
        wanted = self.sequence.sampling.logprobs
        logprob = result.logprob if wanted is not None else None
        shown = [*result.top]
        if logprob is not None and all(i != result.token for i, _ in shown):
            shown.append((result.token, logprob))
        tokenizer = self.tokenizer
        top = tuple(TokenLogprob(i, tokenizer.token(i), p, tokenizer.text_bytes(i)) for i, p in shown)
        return Token(self.name, index, result.token, self.text.add(result.token), logprob, top, result.revision)

    def finished(self, reason: Reason, submitted_s: float, stored: tuple[StoredCapture, ...]) -> Finished:
        """The last event."""
        now = time.perf_counter()
        timings = Timings(self.admitted_s - submitted_s, self.first_token_s, now - submitted_s)
        usage = Usage(self.sequence.prompt_length if self.n_tokens else len(self.sequence.tokens), self.n_tokens)
        return Finished(self.name, reason, usage, timings, stored)


def _frame(name: str, hook_id: str, sequence: Sequence, rows: Rows, revision: int, since: int) -> TensorFrame:
    last = rows.positions[-1] if rows.positions else 0
    step = max(0, last - sequence.prompt_length + 1) if sequence.plan.mode == "generate" else 0
    return TensorFrame(
        input=name,
        hook=rows.hook,
        id=hook_id,
        sites=rows.sites,
        positions=rows.positions,
        step=step,
        tensor=Tensor.of(rows.values),
        part=rows.part,
        revision=revision,
        hook_revision=since,
    )
