"""A model that runs, is read and is edited, on one of several array libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..protos.errors import FailedPrecondition, InvalidArgument, ProbewireError
from .alone_check import alone_fault
from .alone_engine import AloneEngine
from .batch_check import batch_fault
from .batch_engine import BatchEngine
from .checkpoints import plain_folder
from .checkpoints.origin import origin_of
from .checkpoints.quantised.at_load import hash_as_held
from .deltas.offered import offer_weights
from .model.limits import Limits
from .reference import MODEL_TYPES
from .selfcheck import causality_fault, engine_fault, library_fault, prove_sites

if TYPE_CHECKING:
    from .hooks.base import Backend

__all__ = ["BACKENDS", "free_bytes", "load_backend", "shrinks_on_the_way"]

BACKENDS = ("torch", "mlx")
MOST_OF_AN_ERROR = 600
"""Letters of what a library says of a checkpoint."""
_SAID_OF_A_CHECKPOINT = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What the libraries raise of a bad one."""


def load_backend(
    name: str,
    folder: Path,
    *,
    model_id: str,
    limits: Limits,
    model_hash: str = "",
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "",
    threads: int = 0,
    check: bool = True,
    prove_known: bool = True,
    source: str = "",
) -> Backend:
    """Load a checkpoint folder and let it check itself; generation is refused (`generate_note`) where it fails.

    A folder that is no plain checkpoint (packed, pickled, an adapter) is converted once, into the usual cache folder.

    `quantize`: int8 or int4, to hold a plain checkpoint's linear layers in so few bits.
    `prove_known`: try the sites of architectures too that the tests hold to a reference; those of others are always tried.
    `source`: name or path that the folder was found by, which messages name where it was converted.
    `threads`: that the library computes with on the CPU, for the calling thread; 0: as it chooses.

    Raises FailedPrecondition when the backend's extra is not installed.
    """
    if name not in BACKENDS:
        raise InvalidArgument(f"unknown backend {name!r}; allowed: {', '.join(BACKENDS)}")
    try:
        from huggingface_hub.errors import StrictDataclassError

        if name == "torch":
            from .torch.backend import TorchBackend as Chosen
        else:
            from .mlx.backend import MlxBackend as Chosen
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"backend {name} needs {error.name}, which is not installed; pip install 'probewire[{name}]'"
        ) from None
    given, folder = folder, plain_folder(folder)
    named = _named(folder, source if given == folder else str(given))
    if threads:
        Chosen.use_threads(threads)
    try:
        backend = Chosen(
            folder,
            model_id=model_id,
            model_hash=hash_as_held(model_hash, quantize),
            dtype=dtype,
            device=device,
            limits=limits,
            quantize=quantize,
        )
        if check and not backend.compared:
            _compare(folder, backend, device)
        not_causal = causality_fault(backend) if check else ""
    except ProbewireError as error:
        if named == str(folder) or str(folder) not in error.message:
            raise
        raise type(error)(error.message.replace(str(folder), named, 1), retry_after_s=error.retry_after_s) from error
    except ImportError as error:  # of a package that the checkpoint's way of storing weights needs
        raise FailedPrecondition(
            f"the checkpoint in {named} cannot be loaded on {name} with what is installed: {_in_a_line(error)}"
        ) from error
    except (*_SAID_OF_A_CHECKPOINT, StrictDataclassError) as error:
        raise InvalidArgument(f"the checkpoint in {named} cannot be loaded on {name}: {_in_a_line(error)}") from error
    if not_causal:
        backend.close()
        raise InvalidArgument(
            f"the checkpoint in {named} is no causal language model on {name}: {not_causal}; probewire serves those only"
        )
    if check:
        if prove_known or not _has_reference(backend):
            prove_sites(backend)
        _prove_engine(name, folder, backend, device)
    offer_weights(backend)
    if not backend.cuts_runs:
        _tell_no_sweeps(backend)
    _tell_origin(backend, folder)
    return backend


def _named(folder: Path, source: str) -> str:
    """A folder as messages name it: by what it was converted from, which is what a user can mend."""
    if not source or not origin_of(folder) or Path(source).expanduser().resolve() == folder.resolve():
        return str(folder)
    return f"{source} (converted into {folder})"


def _has_reference(backend: Backend) -> bool:
    return backend.info.architecture in MODEL_TYPES


def _tell_no_sweeps(backend: Backend) -> None:
    """Where trials at load have not said why already."""
    info = backend.info
    if backend.points.family is None:
        why = f"how {info.architecture} is built is not known"
    else:
        why = "its plans share keys and values, and not every layer calls the attention function that keeps them"
    backend.info = replace(info, refused={"sweeps": why, **info.refused})


def _tell_origin(backend: Backend, folder: Path) -> None:
    backend.info = replace(backend.info, origin=origin_of(folder))


def _prove_engine(name: str, folder: Path, backend: Backend, device: str) -> None:
    """Keep the engine that computes what runs do: the batching one, or else one that takes sequences one after another."""
    if backend.engine is None:
        return
    fault = _fault(name, folder, backend, device)
    if fault and not backend.info.batching and backend.generate_alone(fault):
        alone = _fault(name, folder, backend, device)
        fault = f"{fault}; one sequence after another, {alone}" if alone else ""
    if fault:
        _refuse_generation(backend, fault)
    elif isinstance(backend.engine, BatchEngine):
        _share_forwards(name, folder, backend, device)


def _share_forwards(name: str, folder: Path, backend: Backend, device: str) -> None:
    """Let sequences that each have the library's own cache share forwards, where that changes nothing."""
    from .checkpoints.shrunk import full_config
    from .torch.tiny import write_tiny

    try:
        config = full_config(folder)
        fault = batch_fault(backend, _small(name, device), write_tiny, config, int(config.get("window_size") or 0))
    except Exception as error:  # noqa: BLE001 - as in `_fault`
        fault = f"the check of sequences that share forwards failed: {_in_a_line(error)}"
    why, noted = backend.info.batching, backend.info.generate_note
    if fault:
        backend.info = replace(backend.info, batching=f"{why}; {fault}")
    else:
        how = f"batches are of the library's own caches, stacked ({why})"
        backend.info = replace(backend.info, batching="", generate_note=f"{how}; {noted}" if noted else how)


def _refuse_generation(backend: Backend, fault: str) -> None:
    if backend.engine is not None:
        backend.engine.close()
        backend.engine = None
    backend.info = replace(backend.info, generate=False, generate_note=f"{fault}; use runs", batching="")


def _compare(folder: Path, backend: Backend, device: str) -> None:
    """Hold a library's code for an architecture against transformers'. Raises where the two differ, or nobody can say."""
    from .checkpoints.shrunk import full_config

    kind = backend.info.architecture
    try:
        from .torch.tiny import own_logits, write_tiny
    except ModuleNotFoundError as error:
        backend.close()
        raise FailedPrecondition(
            f"{kind} on {backend.info.backend} is compared with transformers at load, which needs {error.name}: "
            "pip install 'probewire[torch]'"
        ) from None
    try:
        fault = library_fault(_small(backend.info.backend, device), write_tiny, full_config(folder), own_logits)
    except Exception as error:  # noqa: BLE001 - the libraries raise what they like of a small model of another make
        fault = f"the comparison failed: {_in_a_line(error)}"
    if fault:
        backend.close()
        raise InvalidArgument(
            f"{backend.info.backend}'s {kind} does not compute what transformers computes: {fault}; use the torch backend"
        )


def _small(name: str, device: str) -> Callable[[Path], Backend]:
    """Loads small checkpoints, without checks of their own."""
    limits = Limits(n_slots=2, context_tokens=64, cache_tokens=128, chunk_tokens=8)
    return lambda folder: load_backend(name, folder, model_id="check", limits=limits, device=device, check=False)


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text[:MOST_OF_AN_ERROR]}…" if len(text) > MOST_OF_AN_ERROR else f"{kind}: {text}"


def free_bytes(name: str, device: str) -> int | None:
    """Memory that a model on a device could have now; None where nobody knows."""
    from .model.footprint import free_bytes as main_memory

    if name == "torch":
        from .torch.devices.choice import free_on

        return free_on(device)
    return main_memory()


def shrinks_on_the_way(name: str, device: str) -> bool:
    """Whether quantising at load makes smaller what comes to the device, and not only what stays there."""
    if name != "torch":
        return True  # MLX reads a weight when it quantises it
    from .torch.devices.choice import choose_device

    return choose_device(device.split(",")[0]).type == "cuda"


def _fault(name: str, folder: Path, backend: Backend, device: str) -> str:
    """What the self-check found, or empty. Whatever goes wrong in it costs generation, and never the load."""
    try:
        return _found(name, folder, backend, device)
    except Exception as error:  # noqa: BLE001 - the libraries raise what they like of a model they hardly know
        return f"the check of the engine failed: {_in_a_line(error)}"


def _found(name: str, folder: Path, backend: Backend, device: str) -> str:
    from .checkpoints.shrunk import full_config
    from .model.families import window_in
    from .selfcheck import window_fault

    config = full_config(folder)
    alone = backend.engine if isinstance(backend.engine, AloneEngine) else None
    # gpt_neo's, which no small config of it can have
    fault = alone_fault(backend, int(config.get("window_size") or 0)) if alone else engine_fault(backend)
    if fault or not window_in(config):
        return fault
    if name == "torch" or not backend.compared:
        from .torch.tiny import own_logits, write_tiny
    else:
        from .mlx.tiny import write_tiny

        own_logits = None
    return window_fault(_small(name, device), write_tiny, config, own_logits, alone=alone)
