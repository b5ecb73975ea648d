"""What a client can ask of a server besides computing: models, tokens, weights, kept captures, SAEs, and how it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from ..protos.errors import Internal, InvalidArgument
from ..protos.loading import LoadProgress, LoadRequest
from ..protos.model import ModelInfo, Tokenized, TokenizeRequest
from ..protos.operations import Operation
from ..protos.saes import LoadSaeRequest, SaeInfo
from ..protos.service import Service
from ..protos.tensors import Array
from .progress import progress_bar
from .requests.prompts import Prompt, to_input
from .requests.steps import Ask, Caller, Steps, ask, asking, listen
from .requests.tokens import one_token
from .sae_files import sae_files
from .transport.base import Watched

__all__ = [
    "activity",
    "call",
    "capture",
    "captures",
    "delete_capture",
    "describe",
    "health",
    "load",
    "load_sae",
    "models",
    "saes",
    "token",
    "tokenize",
    "tokenizer_info",
    "unload",
    "unload_sae",
    "weight_names",
    "weights",
]

models = asking(Service.models)
describe = asking(Service.describe)
tokenizer_info = asking(Service.tokenizer_info)
unload = asking(Service.unload)
weight_names = asking(Service.weight_names)
captures = asking(Service.captures)
delete_capture = asking(Service.delete_capture)
saes = asking(Service.saes)
unload_sae = asking(Service.unload_sae)
activity = asking(Service.activity)
health = asking(Service.health)


def load(
    client: Caller,
    model: str,
    *,
    id: str = "",  # noqa: A002 - the word of the contract
    backend: str = "auto",
    dtype: str = "auto",
    revision: str = "",
    quantize: str = "",
    progress: bool = True,
) -> Steps[ModelInfo]:
    """Load a model into a worker of its own and wait until it serves. `model`: `[ID=]MODEL[@BACKEND]`, as `serve` takes it.

    `quantize`: int8 or int4, to hold its linear layers in so few bits.
    """
    info: ModelInfo | None = None
    with progress_bar(f"loading {model}", "bytes", show=progress) as bar:

        def hear(step: LoadProgress) -> None:
            nonlocal info
            info = step.info or info
            bar(step.done, step.total, f"{model}: {step.stage}")

        yield from listen(Service.load, LoadRequest(model, id, backend, dtype, revision, quantize), hear)
    if info is None:
        raise Internal(f"loading {model!r} ended without saying what was loaded")
    return info


def tokenize(client: Caller, prompt: Prompt, *, add_special_tokens: bool = True, model: str = "") -> Steps[Tokenized]:
    """Token ids and texts of a prompt, as a request would use them; a text without special tokens around it if not wanted."""
    return ask(Service.tokenize, TokenizeRequest(to_input(prompt), model, add_special_tokens=add_special_tokens))


def token(client: Caller, text: str, *, model: str = "") -> Steps[int]:
    """The id of the one token that a text is behind other text. Raises InvalidArgument when it is several, or none."""
    return one_token(text, model)


def weights(client: Caller, name: str, *, model: str = "", progress: bool = True) -> Steps[Array]:
    """One weight, named and shaped as in the checkpoint. Raises NotFound, InvalidArgument for what is no name."""
    if not isinstance(cast("object", name), str):
        raise InvalidArgument(
            f"weights takes one name, such as 'model.norm.weight', not {type(name).__name__}; for several: "
            "{name: client.weights(name) for name in names}"
        )
    with progress_bar(f"fetching {name}", "bytes", show=progress) as bar:
        return _read_only((yield from ask(Watched.weights, name, model, bar)))


# ---- captures kept on the server ----


def capture(client: Caller, capture_id: str, *, model: str = "") -> Steps[Array]:
    """One stored capture, with the shape that `captures` lists."""
    return _read_only((yield from ask(Service.capture, capture_id, model)))


# ---- sparse autoencoders on the server ----


def load_sae(
    client: Caller,
    source: str | Path,
    *,
    site: str = "",
    name: str = "",
    shared: bool = False,
    dtype: str = "auto",
    upload: bool | None = None,
    model: str = "",
    progress: bool = True,
) -> Steps[SaeInfo]:
    """Load an SAE, as sae-lens saves it, onto a site: hooks then name it (`capture(site, latents=name, top_k=32)`).

    `source`: a folder, or `owner/repo[@revision]/path` on the Hugging Face hub. A folder of this machine is read by
    a server that runs on it, and sent along to any other; `upload` says which. `site`: left out, as the SAE's config
    says (TransformerLens names too). `dtype`: in which it works; auto: as its config says. `shared`: all users may use it.
    """
    folder = Path(source).expanduser()
    if upload is None:
        upload = folder.is_dir() and not client.is_here
    if upload:
        files = yield from sae_files(folder, progress=progress)
        request = LoadSaeRequest(name or folder.name, model, "", files, site, dtype, shared)
    else:
        told = str(folder.resolve()) if folder.is_dir() else str(source)
        request = LoadSaeRequest(name, model, told, None, site, dtype, shared)
    info = yield from ask(Service.load_sae, request)
    if info.own_site not in ("", info.site):
        told = f"SAE {info.name!r} was trained at {info.own_site}, and is loaded onto {info.site}, where its latents may mean nothing"
        warnings.warn(told, stacklevel=4)  # the line that calls the client
    return info


def call(client: Caller, operation: Operation, *args: Any) -> Steps[Any]:
    """What an operation with one answer comes to, by its row: for those that have no method here (protos/operations.py)."""
    return (yield Ask(operation, args))


def _read_only(array: Array) -> Array:
    """The same memory, so that a service's own array cannot be changed through what we hand out."""
    view = array.view()
    view.flags.writeable = False
    return view
