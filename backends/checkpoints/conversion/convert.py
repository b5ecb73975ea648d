"""One way from every kind of folder to the plain folder that both backends load: a table of kinds, and what is common to them.

A writer fills an empty folder with config.json, weights and the tokenizer's files; here that folder gets its record and its
name, once all of it is there.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from ....protos.errors import FailedPrecondition, InvalidArgument, ProbewireError
from ..contents import content_hashes
from ..folder import check_tokenizer, check_whole
from ..json_file import json_object
from ..progress import Progress, Report
from .adapter import adapter_weights
from .bin import bin_paths
from .gguf import stored_as, write_gguf_folder
from .kept import CONVERTED, lock_of, note_use
from .kind import ADAPTER_CONFIG, Kind, kind_of, quantization_of
from .lora import LoraConfig
from .packed import write_packed
from .plain import write_adapted, write_pickled
from .record import RECORD, Source, is_whole, key_of, write_record
from .source import weights_of
from .texts import has_tokenizer, texts_of
from .write import clear_left_overs, made_whole

__all__ = ["BaseFinder", "Job", "convert_into_cache", "convert_to", "not_converted"]

MOST_OF_A_NAME = 100
"""Letters; file systems hold 255."""

BaseFinder = Callable[[str, str | None], Path]
"""Name or path of an adapter's base, its revision -> the base as a plain folder on this machine."""


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion."""

    kind: Kind
    source: Path
    dtype: str
    """Of all floats; "auto": as the config says, and what was never packed as it is."""
    base: Path | None
    """Of an adapter, as a plain folder."""
    name: str
    """Of the source, without a path."""
    base_name: str = ""
    """The same of the base."""


Writer = Callable[[Job, Path, Report], None]

WRITERS: dict[Kind, Writer] = {
    "gptq": lambda job, out, report: write_packed(job.kind, job.source, out, job.dtype, report),
    "awq": lambda job, out, report: write_packed(job.kind, job.source, out, job.dtype, report),
    "compressed-tensors": lambda job, out, report: write_packed(job.kind, job.source, out, job.dtype, report),
    "gguf": lambda job, out, report: write_gguf_folder(job.source, out, report, dtype=job.dtype),
    "pickle": lambda job, out, report: write_pickled(job.source, out, job.dtype, report),
    "adapter": lambda job, out, report: write_adapted(job.source, _base_of(job), out, job.dtype, report),
}
"""Kind -> what writes it into an empty folder."""


def convert_into_cache(
    source: Path,
    cache_dir: Path,
    report: Report,
    find_base: BaseFinder,
    *,
    name: str,
    dtype: str = "auto",
    base: str = "",
) -> Path:
    """The plain folder of a source, written once under the cache folder; the source itself where it is plain.

    Safe in two processes at once. Raises InvalidArgument, NotFound, FailedPrecondition, Unsupported and Unavailable.
    """
    job = _job(source, find_base, name=name, dtype=dtype, base=base)
    if job is None:
        return source
    sources = _sources(job, cache_dir, report)
    key = key_of(job.kind, dtype, sources)
    out = cache_dir / CONVERTED / f"{name.replace('/', '--')[:MOST_OF_A_NAME]}-{key[:16]}"
    if not is_whole(out):
        with _locked(out, report):
            if not is_whole(out):
                shutil.rmtree(out, ignore_errors=True)
                clear_left_overs(out)
                _convert(job, sources, out, report)
    note_use(out, [job.source] if job.base is None else [job.source, job.base])
    return out


def convert_to(
    source: Path, out: Path, cache_dir: Path, report: Report, find_base: BaseFinder, *, name: str, dtype: str, base: str
) -> Path:
    """The same into a folder of the caller's, which must be new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FailedPrecondition(f"{out} is there already and is no empty folder; give another --out")
    job = _job(source, find_base, name=name, dtype=dtype, base=base)
    if job is None:
        return source
    _convert(job, _sources(job, cache_dir, report), out, report)
    return out


def not_converted(source: Path, dtype: str = "auto") -> InvalidArgument:
    """Why a folder is not among the kinds that are."""
    file = source / "config.json"
    config = json_object(file) if file.is_file() else {}
    stored = quantization_of(source, config) or config.get("quantization")
    if not stored:
        served = "serve it as it is"
        if dtype != "auto":
            served = f"`probewire serve {shlex.quote(str(source))} --dtype {dtype}` computes in another dtype"
        return InvalidArgument(f"{source} needs no converting: nothing was written; {served}")
    return InvalidArgument(
        f"{source} is quantised ({stored.get('quant_method', 'by mlx')}) in a way that is not converted; {', '.join(WRITERS)} are. "
        "Nothing was written; some load as they are: try to serve it"
    )


def _job(source: Path, find_base: BaseFinder, *, name: str, dtype: str, base: str) -> Job | None:
    """What there is to do; None for a plain folder."""
    kind = kind_of(source)
    if kind != "adapter":
        check_whole(source)
    if base and kind != "adapter":
        raise InvalidArgument(f"a base was given ({base}), and {source} is no adapter; leave it out")
    if kind is None or kind not in WRITERS:
        return None
    if kind != "adapter":
        return Job(kind, source, dtype, None, name)
    found, base_name = _found_base(source, find_base, base)
    return Job(kind, source, dtype, found, name, base_name)


def _found_base(source: Path, find_base: BaseFinder, base: str) -> tuple[Path, str]:
    """The base's plain folder, and its name without a path."""
    config = LoraConfig.read(source)
    wanted = base or config.base
    if not wanted:
        raise InvalidArgument(
            f"{source / ADAPTER_CONFIG} names no base (base_model_name_or_path); `probewire convert {source} --base …` says it"
        )
    here = _local(wanted, source, (Path(),) if base else (source, Path(), source.parent))
    try:
        found = find_base(str(here or wanted), None if base or here else config.revision)
    except ProbewireError as error:
        raise type(error)(
            f"the adapter in {source} needs its base {wanted!r}: {error.message} (it was looked for "
            f"{'in' if base else 'in the adapter, beside it and in'} the working folder; `probewire convert {source} --base …` "
            "merges with another copy of it)"
        ) from error
    return found, here.resolve().name if here else wanted


def _local(wanted: str, adapter: Path, places: tuple[Path, ...]) -> Path | None:
    """The first file or folder of a name, relative to some folders; None where there is none, as for a hub id."""
    try:
        found = [place / Path(wanted).expanduser() for place in places]
        # An adapter may be called as its base is: beside itself it would find itself.
        found = [path for path in found if path.exists() and (wanted == "." or path.resolve() != adapter.resolve())]
    except (OSError, RuntimeError, ValueError):
        return None
    return found[0] if found else None


def _base_of(job: Job) -> Path:
    assert job.base is not None
    return job.base


def _sources(job: Job, cache_dir: Path, report: Report) -> list[Source]:
    """Everything that is read, with its contents' hashes."""
    if job.kind == "adapter":
        weights = [adapter_weights(job.source)]
    elif job.kind == "pickle":
        weights = bin_paths(job.source)
    elif job.source.is_file():
        weights = [job.source]
    else:
        weights = sorted(job.source.glob("*.gguf")) if job.kind == "gguf" else weights_of(job.source)
    folder = job.source if job.source.is_dir() else job.source.parent
    sources = [_source(job.name, folder, [*weights, *_small_files(job.source)], cache_dir, report)]
    if job.base is not None:
        files = [*weights_of(job.base), *_small_files(job.base)]
        sources.append(_source(job.base_name, job.base, files, cache_dir, report))
    return sources


def _source(name: str, folder: Path, files: list[Path], cache_dir: Path, report: Report) -> Source:
    hashes = content_hashes(folder, files, cache_dir, report)
    return Source(name, {file.name: (file.stat().st_size, hashes[file.name]) for file in files})


def _small_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    own = [folder / name for name in ("config.json", ADAPTER_CONFIG, "quantize_config.json", RECORD)]
    return [*(file for file in own if file.is_file()), *texts_of(folder)]


def _convert(job: Job, sources: list[Source], out: Path, report: Report) -> None:
    if job.kind != "gguf" and not has_tokenizer(job.source):
        check_tokenizer(job.base or job.source)
    with made_whole(out) as making:
        try:
            WRITERS[job.kind](job, making, report)
        except ProbewireError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A config whose fields have other types than their format's, as likely as not.
            raise InvalidArgument(
                f"{job.source} cannot be converted as {job.kind}: {type(error).__name__}: {error}; "
                "take the config.json that came with the weights"
            ) from error
        stored = stored_as(job.source) if job.kind == "gguf" else ""
        write_record(making, job.kind, job.dtype, sources, stored=stored)


@contextmanager
def _locked(out: Path, report: Report) -> Generator[None]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(out)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(Progress("wait", 0, None))
            lock.acquire()
    except OSError as error:
        raise FailedPrecondition(
            f"the cache folder {out.parent} cannot be used: {error.strerror or error}; give it write permission, choose another "
            "with --cache-dir, or convert with `probewire convert … --out FOLDER`"
        ) from error
    try:
        yield
    finally:
        lock.release()
