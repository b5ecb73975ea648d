"""Values about models and requests: what a model offers, what a user asks, and the events that answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .errors import InvalidArgument
from .generation.messages import ONLY_TEXT, Message, Tool, ToolFormat
from .generation.sampling import Sampling
from .metrics import Measured
from .model_info import LayerWidths, ModelInfo, SiteInfo
from .numbers import within
from .spec import Plan
from .tensors import Tensor
from .tokens import EndToken, TokenLogprob
from .variants.use import UsedVariant, VariantUse, checked_uses

__all__ = [
    "ONLY_TEXT",
    "EndToken",
    "Event",
    "Finished",
    "GenerateRequest",
    "Input",
    "InputStarted",
    "LayerWidths",
    "Message",
    "ModelInfo",
    "ResolvedHook",
    "Revised",
    "RunRequest",
    "Sampling",
    "SiteInfo",
    "Started",
    "StoredCapture",
    "TensorFrame",
    "Timings",
    "Token",
    "TokenLogprob",
    "TokenizeRequest",
    "Tokenized",
    "Usage",
    "named_inputs",
]


@dataclass(frozen=True, slots=True)
class Input:
    """One named prompt: exactly one of text, messages and token_ids. Special tokens are added once."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    """Rendered with the model's chat template, with the generation prompt."""
    token_ids: tuple[int, ...] | None = None
    """Taken as they are."""
    name: str = "input"
    source_only: bool = False
    """Generate: run as a source of patches only; nothing is generated from it and it gets no `Finished`."""
    prompt_length: int | None = None
    """Run: how many of the tokens count as prompt; None: all. Lets a run repeat a generation."""
    variants: tuple[VariantUse, ...] | None = None
    """None: the request's; given: these instead; empty: the base."""
    continue_final: bool = False
    """The last of the messages goes on where it ends; no reply to it is begun."""
    tools: tuple[Tool, ...] = ()
    """What the chat template is told that the model may call."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        for name in ("messages", "token_ids"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        given = [name for name in ("text", "messages", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidArgument(
                f"input {self.name!r} needs exactly one of text, messages and token_ids, got {given or 'none'}"
            )
        if self.messages is not None and not self.messages:
            raise InvalidArgument(f"input {self.name!r}: messages is empty; send at least one message")
        if self.tools and self.messages is None:
            raise InvalidArgument(
                f"input {self.name!r}: tools are told to the model by its chat template, with messages; send those, or leave "
                "tools out"
            )
        if self.continue_final and self.messages is None:
            raise InvalidArgument(
                f"input {self.name!r}: continue_final goes on with the last of the messages, and there are none; a text or "
                "token_ids are gone on with as they are: leave it out"
            )
        if self.token_ids is not None and any(isinstance(i, bool) or i < 0 for i in self.token_ids):
            raise InvalidArgument(f"input {self.name!r}: token_ids must be integers of 0 or more")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise InvalidArgument(f"input {self.name!r}: prompt_length must be 1 or more, got {self.prompt_length}")
        if self.variants is not None:
            object.__setattr__(self, "variants", checked_uses(self.variants, f"input {self.name!r}"))


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Sample a continuation of every input (but `source_only` ones)."""

    inputs: tuple[Input, ...]
    model: str = ""  # empty: the only model loaded
    plan: Plan = Plan()
    sampling: Sampling = Sampling()
    session: str = ""  # id of a live session; its hooks apply before the plan's own, which see what it edits
    variants: tuple[VariantUse, ...] = ()
    """Of every input that names none itself, behind those of the session."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", named_inputs(self.inputs))
        object.__setattr__(self, "variants", checked_uses(self.variants, "the request"))
        if all(item.source_only for item in self.inputs):
            raise InvalidArgument("every input is source_only, so nothing would be generated; leave it off one")


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One forward pass over every input; no sampling."""

    inputs: tuple[Input, ...]
    model: str = ""
    plan: Plan = Plan()
    variants: tuple[VariantUse, ...] = ()
    """Of every input that names none itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", named_inputs(self.inputs))
        object.__setattr__(self, "variants", checked_uses(self.variants, "the request"))
        if all(item.source_only for item in self.inputs):
            raise InvalidArgument("every input is source_only, so nothing would be answered; leave it off one")


MAX_INPUTS = 64


def named_inputs(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """A request's inputs. Raises InvalidArgument for none, too many, or names that are not distinct."""
    inputs = tuple(inputs)
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidArgument(f"a request takes 1 to {MAX_INPUTS} inputs, got {len(inputs)}")
    names = [item.name for item in inputs]
    if len(set(names)) != len(names):
        raise InvalidArgument(f"inputs need distinct names, got {names}")
    return inputs


@dataclass(frozen=True, slots=True)
class ResolvedHook:
    """A hook as the worker understood it."""

    hook: int
    """Index in the plan."""
    id: str
    sites: tuple[str, ...]
    """Canonical, one a layer."""
    saes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of each SAE that it uses → SHA-256 of its weights as saved: a shared name may change hands."""


@dataclass(frozen=True, slots=True)
class InputStarted:
    """One input after tokenisation."""

    name: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each token's own text, as it stands behind others."""
    seed: int = 0
    """Generate: the sampling seed in use."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: the request was accepted and every hook will be honoured."""

    request_id: str
    model: str
    model_hash: str
    backend: str
    device: str
    dtype: str
    attention: str
    versions: Mapping[str, str]
    hooks: tuple[ResolvedHook, ...]
    inputs: tuple[InputStarted, ...]
    revision: int = 0  # of the session's plan; 0 without one
    n_layers: int = 0  # so that layers counted from the end can be read; 0: not told
    variants: tuple[UsedVariant, ...] = ()


@dataclass(frozen=True, slots=True)
class Revised:
    """The session changed: what follows of this input ran under another plan."""

    input: str
    revision: int
    hooks: tuple[ResolvedHook, ...]
    variants: tuple[UsedVariant, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token."""

    input: str
    index: int
    """0 for the first new token."""
    id: int
    text: str
    """Text that became final with this token; may be empty while a character or a stop string is incomplete."""
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()  # the n likeliest, then the sampled one where it is not among them
    revision: int = 0


@dataclass(frozen=True, slots=True)
class TensorFrame:
    """Rows of one hook's capture at one or more sites, from one step."""

    input: str
    hook: int
    """Index of the hook in the plan."""
    id: str
    """The hook's id."""
    sites: tuple[str, ...]
    """The leading axis of the tensor."""
    positions: tuple[int, ...]
    """Absolute positions of the rows (the `pos` or `query` axis); empty for `mean`, whose row axis has length 1."""
    step: int
    """0 for the prompt's (last) forward; rows of generated token i come with step i+1. Runs: 0."""
    tensor: Tensor
    """[site, …the site's own axes]."""
    part: str = ""
    """"value" and "index" for top_k; "gradient" (gradient_value, gradient_index) for gradients."""
    revision: int = 0
    hook_revision: int = 0
    """Since which revision of the session the hook has been what it is; 0: the request's own. Rows of one hook with
    different ones are different captures."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, measured in the worker."""

    queued_s: float = 0.0
    first_token_s: float = 0.0  # from admission to the first sampled token
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredCapture:
    """A capture kept on the server."""

    id: str
    site: str
    input: str
    positions: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...]
    model: str = ""
    created_s: float = 0.0  # Unix time
    expires_s: float = 0.0  # Unix time; deleted then
    variants: tuple[str, ...] = ()
    """Hashes of those that it was made with."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of one input."""

    input: str
    reason: Literal["stop", "length", "eos", "run"]
    """stop: a stop string; eos: an end-of-sequence token; length: max_new_tokens; run: a run ended."""
    usage: Usage
    timings: Timings = Timings()
    stored: tuple[StoredCapture, ...] = ()


Event = Started | Token | TensorFrame | Finished | Revised | Measured


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """Tokens of an input as a request would use them, or the text of token ids."""

    input: Input
    model: str = ""
    at_most: int = 0
    """More tokens are refused, and known by the text's length where it tells; 0: any number."""
    add_special_tokens: bool = True
    """Around a text, as a request has them; a chat template writes its own."""

    def __post_init__(self) -> None:
        within(self.at_most, 0, 1 << 40, "at_most", integer=True)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids and each token's text."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each token's own text, as it stands behind others."""
    text: str
    """The whole prompt as text, special tokens included."""
    raw: tuple[bytes, ...] = ()
    """The bytes each token adds to a text that has begun; of half a character, its half."""


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What the checkpoint calls its special tokens, as texts, and its chat template; None: it has none."""

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
    tool_format: ToolFormat | None = None
    """How the template writes calls of tools; None: it reads no tools, or writes calls in another form than JSON."""
