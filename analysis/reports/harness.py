"""Our client as a model of EleutherAI's lm-evaluation-harness (0.4.13 and on): `simple_evaluate(ProbewireLM(client), tasks)`.

from probewire.analysis.reports.harness import ProbewireLM     # needs probewire[validate]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...clients import Client, Message
from ...clients.progress import progress_bar
from ...clients.requests.hooks import Hooks
from ...clients.session import SessionView
from ...protos.errors import FailedPrecondition, InvalidArgument
from .harness_sampling import sampling_of
from .likelihoods import likelihoods, piece
from .subject import Subject, Uses

__all__ = ["HarnessModel", "ProbewireLM", "harness_library"]

if TYPE_CHECKING:
    ProbewireLM: Any

INPUTS_A_REQUEST = 32
_KEPT = 4096
"""Texts whose tokens are remembered: the harness asks for each context once a choice."""


class HarnessModel:
    """What the harness needs of a model, without the harness: texts to tokens, log-likelihoods, continuations."""

    def __init__(
        self,
        client: Client,
        *,
        variant: Uses = (),
        hooks: Hooks = (),
        session: SessionView | str = "",
        model: str = "",
        subject: Subject | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        custom_prefix_token_id: int | None = None,
    ) -> None:
        """`max_length`: tokens of a text at most, of a longer one the last so many (default: the context's, less one).

        `subject`: in place of what changes the model. The other options are those of the harness's own models. Raises what `describe` and `Subject.of` raise.
        """
        self.subject = subject or Subject.of(client, hooks=hooks, variant=variant, session=session, model=model)
        model = self.subject.model
        self.info, self.named = client.describe(model), client.tokenizer_info(model)
        self.max_length = max_length or max(2, (self.info.context_length or 2049) - 1)
        self.max_gen_toks, self.add_bos_token = max_gen_toks, add_bos_token
        self.eot = self._special(self.named.eos_token)
        bos = self._special(self.named.bos_token)
        first = (custom_prefix_token_id, bos, self.eot)
        self.prefix = next((token for token in first if token is not None), None)
        self._prefix_text = "" if self.prefix is None else client.tokenize([self.prefix], model=model).text
        self._kept: dict[tuple[str, bool], list[int]] = {}

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids; `special` None: as a request has them, once."""
        if special is None:
            begun = bool(self._prefix_text) and text.startswith(self._prefix_text)
            special = not begun and self.add_bos_token is not False
        key = (text, special)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = self._tokenize(text, special) if text else []
        return list(self._kept[key])

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, progress: bool
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation behind its context, and whether greedy decoding would say it.

        Raises InvalidArgument for a continuation of no token: the sum over nothing would look like certainty.
        """
        if empty := [i for i, (_, continuation) in enumerate(pairs) if not len(continuation)]:
            behind = self.subject.client.tokenize(list(pairs[empty[0]][0]), model=self.subject.model).text
            raise InvalidArgument(
                f"the continuation of {behind[-60:]!r} has no token of its own: this tokenizer joins it to the context; begin "
                "choices with a space (target_delimiter), or leave the task out"
            )
        pieces = [piece(context, continuation, self.max_length) for context, continuation in pairs]
        [scores] = likelihoods([self.subject], pieces, label="log-likelihoods", progress=progress)
        return [(score.total, score.greedy) for score in scores]

    def generate(self, asked: Sequence[tuple[str, dict[str, Any]]], *, progress: bool) -> list[str]:
        """What follows each text, by its own options; those with the same options go together."""
        options = [sampling_of(kwargs, self.max_gen_toks) for _, kwargs in asked]
        found = [""] * len(asked)
        with progress_bar("generating", "prompts", show=progress) as bar:
            done = 0
            for option in dict.fromkeys(options):
                mine = [i for i, one in enumerate(options) if one == option]
                for start in range(0, len(mine), INPUTS_A_REQUEST):
                    batch = mine[start : start + INPUTS_A_REQUEST]
                    bar(done, len(asked))
                    room = max(1, self.max_length + 1 - option.max_new_tokens)
                    prompts = {str(i): self.encode(asked[i][0])[-room:] for i in batch}
                    for i, text in zip(batch, self._continued(prompts, option.as_options()), strict=True):
                        found[i] = text
                    done += len(batch)
        return found

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages as the chat template writes them, ready for a reply."""
        said = [Message(message["role"], message["content"]) for message in messages]
        return self.subject.client.tokenize(said, model=self.subject.model).text

    def _continued(self, prompts: dict[str, list[int]], options: dict[str, Any]) -> list[str]:
        subject = self.subject
        edits = subject.edits(list(prompts))
        made = subject.client.generate(subject.inputs(prompts), hooks=edits, model=subject.model, **options)
        return [made.inputs[name].text for name in prompts]

    def _tokenize(self, text: str, special: bool) -> list[int]:
        found = self.subject.client.tokenize(text, add_special_tokens=special, model=self.subject.model)
        return list(found.token_ids)

    def _special(self, text: str | None) -> int | None:
        """The id of a special token by its text."""
        return None if not text else self._tokenize(text, special=False)[0]


@cache
def harness_library() -> Any:
    """The module `lm_eval`. Raises FailedPrecondition where it is missing."""
    try:
        return import_module("lm_eval")
    except ImportError as error:
        raise FailedPrecondition(
            f"lm-evaluation-harness is not installed ({error}): pip install 'probewire[validate]'"
        ) from None


@cache
def _adapter() -> type[Any]:
    """The harness's own base class filled in; made when it is asked for, as the harness is an extra."""
    harness_library()
    template: Any = import_module("lm_eval.api.model").TemplateLM
    rolling = import_module("lm_eval.utils")

    class ProbewireLM(template):
        """`client`, and what `HarnessModel` takes."""

        def __init__(self, client: Client, *, progress: bool = True, **options: Any) -> None:
            template.__init__(self)
            self.inner, self.shown = HarnessModel(client, **options), progress
            self.max_length = self.inner.max_length

        @property
        def eot_token_id(self) -> int:
            return self._known(self.inner.eot)

        @property
        def prefix_token_id(self) -> int:
            return self._known(self.inner.prefix)

        @property
        def tokenizer_name(self) -> str:
            return self.inner.info.id.replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str:
            return (self.inner.named.chat_template or "") if chat_template else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise InvalidArgument(
                    "a reply that is begun for the model (a prefill) is not offered; leave it out of the task"
                )
            return self.inner.render(chat_history)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return self.inner.encode(string, special=add_special_tokens)

        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            found = self.inner.score(pairs, progress=self.shown and not disable_tqdm)
            for (key, _, _), score in zip(requests, found, strict=True):
                if key is not None:  # a window of a rolling text has none
                    self.cache_hook.add_partial("loglikelihood", key, score)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            windows: list[tuple[int, tuple[None, list[int], list[int]]]] = []
            for i, request in enumerate(requests):
                tokens = self.tok_encode(request.args[0])
                length = self.max_length - 1  # with the token before it
                cut = rolling.get_rolling_token_windows(tokens, self.prefix_token_id, length, 1)
                windows += [(i, (None, *rolling.make_disjoint_window(window))) for window in cut]
            scores = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
            totals = [0.0] * len(requests)
            for (i, _), (score, _) in zip(windows, scores, strict=True):
                totals[i] += score
            for request, total in zip(requests, totals, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [(request.args[0], dict(request.args[1])) for request in requests]
            found = self.inner.generate(asked, progress=self.shown and not disable_tqdm)
            for request, text in zip(requests, found, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, text)
            return found

        def _known(self, token: int | None) -> int:
            if token is None:
                raise InvalidArgument(
                    f"{self.inner.info.id} names no end or beginning of text, which this task needs before its first token; "
                    "give custom_prefix_token_id"
                )
            return token

    return ProbewireLM


def __getattr__(name: str) -> Any:
    if name == "ProbewireLM":
        return _adapter()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
