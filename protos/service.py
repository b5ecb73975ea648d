"""What a client talks to, whatever carries it: a server over gRPC or REST, or a model in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from .activity import ActivityReport
from .gradients import GradientsRequest
from .loading import HealthReport, LoadProgress, LoadRequest
from .model import (
    Event,
    GenerateRequest,
    ModelInfo,
    RunRequest,
    StoredCapture,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from .saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from .sessions import CreateSessionRequest, Session, UpdateSessionRequest
from .sweeps import SweepRequest
from .tensors import Array
from .variants.stored import LoadVariantRequest, VariantInfo, VariantPart, VariantPartRequest

__all__ = ["InferenceRequest", "Service"]

InferenceRequest = GenerateRequest | RunRequest | GradientsRequest | SweepRequest
"""What a model is asked to compute."""


@runtime_checkable
class Service(Protocol):
    """The operations of DESIGN.md section 7. Every method raises ProbewireError and nothing else."""

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        """Started, then each step's frames and its token, then Finished once an input that generates. Closing cancels."""
        ...

    def run(self, request: RunRequest) -> Iterator[Event]:
        """Started, tensor frames, Finished once an input."""
        ...

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        """Started, then of each input what was measured, its tensor frames, and Finished."""
        ...

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        """Started, then what was measured as it comes, and Finished once an input."""
        ...

    def models(self) -> list[ModelInfo]:
        """Every loaded model."""
        ...

    def describe(self, model: str = "") -> ModelInfo:
        """One model (empty: the only one): its sizes, and which sites it offers for what."""
        ...

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        """Progress; the last message carries the model's info."""
        ...

    def unload(self, model: str) -> None:
        """End a model's worker; its requests in flight end with Unavailable."""
        ...

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Token ids and texts of an input."""
        ...

    def tokenizer_info(self, model: str = "") -> TokenizerInfo:
        """What a model's special tokens are called, and its chat template."""
        ...

    def weights(self, name: str, model: str = "") -> Array:
        """One weight, named and shaped as in the checkpoint."""
        ...

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, as in the checkpoint."""
        ...

    def captures(self, model: str = "") -> list[StoredCapture]:
        """Captures kept with `store`."""
        ...

    def capture(self, capture_id: str, model: str = "") -> Array:
        """One stored capture."""
        ...

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        """Forget a stored capture."""
        ...

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        """Load a sparse autoencoder onto a site of a model."""
        ...

    def send_sae(self, part: SaePart) -> SaeReceived:
        """Send a part of an SAE's weights, to be loaded once all are there."""
        ...

    def saes(self, model: str = "") -> list[SaeInfo]:
        """The caller's SAEs and those that are shared; of one model, or (empty) of all."""
        ...

    def unload_sae(self, name: str, model: str = "") -> None:
        """Forget an SAE; requests that run with it go on."""
        ...

    def load_variant(self, request: LoadVariantRequest) -> VariantInfo:
        """Load a variant onto a model."""
        ...

    def send_variant(self, part: SaePart) -> SaeReceived:
        """Send a part of a variant's file, to be loaded once all are there."""
        ...

    def variants(self, model: str = "") -> list[VariantInfo]:
        """The caller's variants and those that are shared; of one model, or (empty) of all."""
        ...

    def variant(self, name: str, model: str = "") -> VariantInfo:
        """One that the caller may use."""
        ...

    def variant_part(self, request: VariantPartRequest) -> VariantPart:
        """A part of a file of a variant."""
        ...

    def unload_variant(self, name: str, model: str = "") -> None:
        """Forget a variant; requests that run with it go on."""
        ...

    def create_session(self, request: CreateSessionRequest) -> Session:
        """Make a live session of the caller's."""
        ...

    def update_session(self, request: UpdateSessionRequest) -> Session:
        """Give a session its next revision, for generations under way from their next step on."""
        ...

    def session(self, session_id: str) -> Session:
        """One of the caller's sessions."""
        ...

    def sessions(self) -> list[Session]:
        """The caller's sessions."""
        ...

    def delete_session(self, session_id: str) -> None:
        """Forget a session; generations under way keep the plan they have."""
        ...

    def activity(self) -> ActivityReport:
        """Who is running what: models, and requests under way. It holds no prompts."""
        ...

    def health(self) -> HealthReport:
        """Whether the service can serve, found by a real forward."""
        ...

    def close(self) -> None:
        """Let go of connections or of the model."""
        ...
