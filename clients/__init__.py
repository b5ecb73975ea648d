"""What a notebook imports: `Client`, `AsyncClient`, short ways to write hooks, the values of plans and requests, and the errors."""

from ..protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    FromInput,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Stored,
    Zeros,
)
from ..protos.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ProbewireError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from ..protos.generation.messages import Message, Tool, ToolCall
from ..protos.generation.sampling import Grammar, Sampling, TokenBias
from ..protos.gradients import IntegratedPath
from ..protos.latents import LatentChange, Latents, ReadLatents
from ..protos.metrics import Coordinate, Kl, Logit, LogitDifference, LogProb, Target, TopLogits, WeightedSum
from ..protos.model import Input, ModelInfo
from ..protos.saes import SaeInfo
from ..protos.sites import Site
from ..protos.spec import (
    AllOf,
    AnyOf,
    Capture,
    Condition,
    Gather,
    Hook,
    Last,
    Mean,
    NextLogprob,
    Norm,
    Plan,
    Project,
    Span,
    TopK,
    Where,
)
from ..protos.tensors import Tensor
from ..protos.variants.delta import Delta
from ..protos.variants.manifest import Base, Manifest
from ..protos.variants.variant import Variant
from .async_client import AsyncClient
from .async_session import AsyncLiveSession
from .async_stream import AsyncStream
from .client import Client
from .requests.aligning import Alignment, align
from .requests.asked import Asked
from .requests.hooks import ablate, capture, edit_latents, hook, patch, reconstruct, steer
from .requests.variants import use
from .results.captures import Captures
from .results.latents import LatentRows
from .results.loading import load
from .results.named_array import NamedArray
from .results.results import Generation, Gradients, InputResult, Run
from .results.sweep import Sweep
from .session import LiveSession
from .steering import SteeringVector
from .stream import Step, Stream

__all__ = [
    "Add",
    "Affine",
    "Alignment",
    "AllOf",
    "AnyOf",
    "Asked",
    "AsyncClient",
    "AsyncLiveSession",
    "AsyncStream",
    "Base",
    "Cancelled",
    "Capture",
    "Captures",
    "Clamp",
    "Client",
    "Condition",
    "Constant",
    "Coordinate",
    "DeadlineExceeded",
    "Delta",
    "FailedPrecondition",
    "FromInput",
    "Gather",
    "Generation",
    "Gradients",
    "Grammar",
    "Hook",
    "Inline",
    "Input",
    "InputResult",
    "IntegratedPath",
    "Internal",
    "InvalidArgument",
    "Kl",
    "Last",
    "LatentChange",
    "LatentRows",
    "Latents",
    "LiveSession",
    "LogProb",
    "Logit",
    "LogitDifference",
    "LowRank",
    "Manifest",
    "Mean",
    "Message",
    "ModelInfo",
    "NamedArray",
    "NextLogprob",
    "Noise",
    "Norm",
    "NotFound",
    "PermissionDenied",
    "Plan",
    "ProbewireError",
    "Project",
    "ProjectOut",
    "ReadLatents",
    "Replace",
    "ResourceExhausted",
    "Run",
    "SaeInfo",
    "Sampling",
    "Scale",
    "Site",
    "Span",
    "SteeringVector",
    "Step",
    "Stored",
    "Stream",
    "Sweep",
    "Target",
    "Tensor",
    "TokenBias",
    "Tool",
    "ToolCall",
    "TopK",
    "TopLogits",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Variant",
    "WeightedSum",
    "Where",
    "Zeros",
    "ablate",
    "align",
    "capture",
    "edit_latents",
    "hook",
    "load",
    "patch",
    "reconstruct",
    "steer",
    "use",
]
