"""A checkpoint folder, checked before anything is loaded from it, so that a user's mistake never becomes a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument, NotFound
from .agreement import check_agreement
from .conversion.kind import refuse_unnamed_packing
from .json_file import json_object
from .weight_file import WeightFile, read_weight_file

__all__ = ["CheckpointFolder", "check_tokenizer", "check_whole", "inspect_folder", "read_config", "weight_paths"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("tekken.json",), ("vocab.json", "merges.txt"))
"""A tokenizer is there when all files of one of these are."""
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """What a sound folder holds."""

    path: Path
    config: dict[str, Any]
    weights: tuple[WeightFile, ...]

    @property
    def model_type(self) -> str:
        """The architecture, as transformers names it."""
        return self.config["model_type"]


def inspect_folder(path: Path) -> CheckpointFolder:
    """Check config, weights and tokenizer, and that they agree; of the weights, headers alone are read.

    Raises NotFound when there is no such folder, InvalidArgument when it cannot be loaded as it is.
    """
    if not path.exists():
        raise NotFound(f"there is no file or folder {path}; check the path")
    if not path.is_dir():
        raise InvalidArgument(
            f"{path} is a file; give the folder that holds config.json, the safetensors weights and the tokenizer"
        )
    try:
        check_whole(path)
        config = read_config(path)
        weights = tuple(read_weight_file(file) for file in weight_paths(path))
        _check_index(path, weights)
        refuse_unnamed_packing(path, config, [name for file in weights for name in file.shapes])
        check_tokenizer(path)
        check_agreement(path, config, weights)
    except OSError as error:
        raise InvalidArgument(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return CheckpointFolder(path, config, weights)


def check_whole(folder: Path) -> None:
    """Raise InvalidArgument for an adapter: beside a whole model it would be applied on one backend and not on the other."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    base = json_object(file).get("base_model_name_or_path") or "a base model that it does not name"
    merge = "merge it: `probewire convert` of a folder that holds the adapter alone"
    if (folder / "config.json").is_file():
        raise InvalidArgument(
            f"{folder} holds a whole model and an adapter ({file.name}, for {base}): which of them is meant is not clear; "
            f"remove the adapter's files, or {merge}"
        )
    raise InvalidArgument(
        f"{folder} holds an adapter for {base}, not a whole model; `probewire convert` merges the two"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises InvalidArgument where it is none, or asks to run code."""
    file = folder / "config.json"
    if not file.is_file():
        raise InvalidArgument(f"{folder} is not a checkpoint folder: it has no config.json{_sub_folder_hint(folder)}")
    config = json_object(file)
    if not isinstance(config.get("model_type"), str):
        raise InvalidArgument(f"{file} names no model_type; take the config.json that came with the weights")
    if "model_file" in config:
        raise InvalidArgument(
            f"{file} asks to run {config['model_file']}; code from checkpoints is never run: "
            "remove model_file if the architecture is one that transformers knows"
        )
    return config


def _sub_folder_hint(folder: Path) -> str:
    inner = sorted(str(child.parent) for child in folder.glob("*/config.json"))
    return f"; did you mean {inner[0]}?" if inner else "; give the folder that holds it"


def weight_paths(folder: Path) -> list[Path]:
    """The files that transformers would load; mlx-lm loads every model*.safetensors, so these must be all there are."""
    present = {file.name for file in folder.glob("model*.safetensors")}
    if (folder / _INDEX).is_file():
        chosen = set(_weight_map(folder).values())
        if missing := sorted(chosen - {file.name for file in folder.iterdir()}):
            raise InvalidArgument(f"{folder / _INDEX} lists {', '.join(missing)}, which is missing; fetch it again")
        if odd := sorted(name for name in chosen if Path(name).name != name or name not in present):
            raise InvalidArgument(f"{folder / _INDEX} lists {odd[0]!r}; weights must be named model*.safetensors")
    elif _SINGLE in present:
        chosen = {_SINGLE}
    else:
        raise InvalidArgument(_no_weights(folder, sorted(present)))
    if extra := sorted(present - chosen):
        raise InvalidArgument(
            f"{folder} holds {', '.join(extra)} besides {', '.join(sorted(chosen)[:2])}, and the two backends would not "
            "load the same weights; keep one set of model*.safetensors"
        )
    return [folder / name for name in sorted(chosen)]


def _no_weights(folder: Path, shards: list[str]) -> str:
    if shards:
        return f"{folder} holds {', '.join(shards[:3])} but no {_SINGLE} and no {_INDEX}; fetch the index too"
    if pickles := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
        return (
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code and are never "
            "loaded as they are; `probewire convert` reads the tensors of a pytorch_model.bin and nothing else of it"
        )
    if others := sorted(file.name for pattern in ("*.safetensors", "*.gguf") for file in folder.glob(pattern)):
        return (
            f"{folder} holds {', '.join(others[:3])} but no {_SINGLE}; weights must be named as transformers names them"
        )
    return f"{folder} holds no weights: neither {_SINGLE} nor {_INDEX}"


def _check_index(folder: Path, weights: tuple[WeightFile, ...]) -> None:
    if not (folder / _INDEX).is_file():
        return
    shapes = {file.path.name: file.shapes for file in weights}
    absent = [name for name, file in _weight_map(folder).items() if name not in shapes[file]]
    if absent:
        raise InvalidArgument(
            f"{folder / _INDEX} lists {len(absent)} tensors that its files do not hold, {absent[0]} first; fetch them again"
        )


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map: Any = json_object(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidArgument(f"{folder / _INDEX} has no weight_map; fetch it again")
    files = cast("dict[str, Any]", weight_map)
    if odd := [file for file in files.values() if not isinstance(file, str)]:
        raise InvalidArgument(f"{folder / _INDEX} lists {odd[0]!r} as a file name; fetch it again")
    return files


def check_tokenizer(folder: Path) -> None:
    """Raise InvalidArgument where no tokenizer is there in full."""
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        allowed = ", ".join(" + ".join(names) for names in _TOKENIZERS)
        raise InvalidArgument(
            f"{folder} holds no tokenizer (one of {allowed}); copy the files that came with the model"
        )
    for name in _JSON_FILES:
        if (folder / name).is_file():
            json_object(folder / name)
