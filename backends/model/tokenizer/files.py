"""The tokenizer of a checkpoint folder, of whichever kind its files are."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ....protos.errors import FailedPrecondition, InvalidArgument, ProbewireError
from .codec import Codec
from .fast import FastCodec
from .sentence_pieces import SentencePieceCodec

__all__ = ["read_codec"]

_FIX = "copy the tokenizer.json that belongs to the model, or save one with the transformers version it was made for"
_PLAIN_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
"""Whose ids are those of the sentencepiece model; others move them."""
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")


def read_codec(folder: Path) -> Codec:
    """tokenizer.json as it is, else tokenizer.model by sentencepiece, else what transformers makes of the rest.

    A class that the config names is not asked where there is a tokenizer.json: some rebuild it from its vocabulary, by
    rules of their own. Raises InvalidArgument for a tokenizer that is code, or that would not be the checkpoint's own.
    """
    with _translated(folder):
        codec = _codec(folder)
        if not codec.chat.chat_template:
            codec.chat.chat_template = _template(folder)
        return codec


def _codec(folder: Path) -> Codec:
    if (folder / "tokenizer.json").is_file():
        return FastCodec(_backend(folder))
    _refuse_code(folder)
    if (folder / "tokenizer.model").is_file():
        return _sentence_pieces(folder)
    if (folder / "tekken.json").is_file():
        return FastCodec(_tekken(folder))
    return FastCodec(_rebuilt(folder))


def _template(folder: Path) -> str | None:
    """Where the first models that also see keep it."""
    path = folder / "chat_template.json"
    return json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None


@contextmanager
def _translated(folder: Path) -> Generator[None]:
    try:
        yield
    except ProbewireError as error:
        raise InvalidArgument(f"the tokenizer in {folder}: {error.message}") from error
    except ImportError as error:
        raise FailedPrecondition(
            f"the tokenizer in {folder} needs a package that is not installed ({error}); "
            "pip install 'probewire[server]'"
        ) from error
    except Exception as error:  # tokenizers raises Exception itself, transformers any kind
        said = " ".join(str(error).split())
        raise InvalidArgument(f"the tokenizer in {folder} cannot be read ({said}); {_FIX}") from error


def _backend(folder: Path, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizers: Any = PreTrainedTokenizerFast  # its methods are not annotated
    return tokenizers.from_pretrained(folder, **options)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _refuse_code(folder: Path) -> None:
    code: Any = _config(folder).get("auto_map")
    named: Any = cast("dict[str, Any]", code).get("AutoTokenizer") if isinstance(code, dict) else code
    if named:
        raise InvalidArgument(f"it is code ({named}), which is never run; {_FIX}")


def _sentence_pieces(folder: Path) -> Codec:
    path, named = folder / "tokenizer.model", _config(folder).get("tokenizer_class") or _PLAIN_CLASSES[0]
    with path.open("rb") as file:
        if _TIKTOKEN_LINE.match(file.read(1 << 16)):
            raise InvalidArgument(
                "its tokenizer.model is of the tiktoken format, which does not say how text is cut into words; "
                "copy the tokenizer.json of the model's Hugging Face form, or write one with "
                "transformers.integrations.tiktoken.convert_tiktoken_to_fast"
            )
    if str(named).removesuffix("Fast") not in _PLAIN_CLASSES:
        raise InvalidArgument(
            f"it has a tokenizer.model and the class {named}, which may number its pieces otherwise; {_FIX}"
        )
    return SentencePieceCodec(path, _beside(folder))


def _beside(folder: Path) -> Any:
    """What the files beside a sentencepiece model say: named and added tokens, the chat template."""
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    tokenizers: Any = SentencePieceBackend
    return tokenizers.from_pretrained(folder)


def _tekken(folder: Path) -> Any:
    """Mistral's own format, whose texts begin with <s>."""
    file: dict[str, Any] = json.loads((folder / "tekken.json").read_text(encoding="utf-8"))
    special = {token["token_str"] for token in file.get("special_tokens") or ()}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    known = {name: token for name, token in names.items() if token in special}
    return _backend(folder, vocab_file=str(folder / "tekken.json"), add_bos_token="bos_token" in known, **known)


def _rebuilt(folder: Path) -> Any:
    """vocab.json and merges.txt, whose rules for words are those of the class that the config names."""
    from transformers import AutoTokenizer

    tokenizers: Any = AutoTokenizer
    found = tokenizers.from_pretrained(folder, trust_remote_code=False)
    if not found.is_fast:
        raise InvalidArgument(f"its class {type(found).__name__} has no fast form; {_FIX}")
    return found
