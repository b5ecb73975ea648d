"""The tokenizer inside a GGUF file, as the files that transformers loads."""

from __future__ import annotations

import json
from typing import Any

from ....protos.errors import FailedPrecondition, InvalidArgument
from .gguf_header import GgufHeader

__all__ = ["tokenizer_files"]

_CONTROL = 3
"""llama.cpp's token type for special tokens."""
_NAMED = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "tekken"}
"""Ways of splitting after which a word that is a token is never built from merges."""
_GPT2 = {"gpt-2", "gpt2"}
"""Split as GPT-2 splits."""
_SPACE = "\u2581"
"""How sentencepiece writes one."""
_HUB = "take the model as safetensors"


def tokenizer_files(header: GgufHeader) -> dict[str, dict[str, Any]]:
    """File name -> its JSON content. Raises InvalidArgument for a tokenizer that cannot be rebuilt exactly."""
    kind = (header.get("tokenizer.ggml.model"), header.values.get("tokenizer.ggml.pre", "default"))
    if kind == ("gpt2", "smollm"):
        return _smollm(header)
    backend = _built(header, *kind)
    named = _named(header)
    backend["post_processor"] = _post_processor(header, kind[0])
    config: dict[str, Any] = {
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.get(f"{header.architecture}.context_length"),
        # The class that takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template := header.values.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return {"tokenizer.json": backend, "tokenizer_config.json": config, "special_tokens_map.json": named}


def _built(header: GgufHeader, model: str, pre: str) -> dict[str, Any]:
    """tokenizer.json as transformers rebuilds it; what it would rebuild otherwise than it was is refused."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_PRE_TOKENIZER_SPLITS,
            convert_gguf_tokenizer,
        )
    except ImportError as error:
        raise FailedPrecondition(
            "a GGUF file's tokenizer is rebuilt by transformers 5.23 or newer; update it: pip install -U transformers"
        ) from error
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *_GPT2}
    if model not in ("gpt2", "llama") or (model == "gpt2" and pre not in known):
        raise InvalidArgument(
            f"{header.path.name} has a tokenizer of the type {model!r} that splits as {pre!r}, which cannot be rebuilt exactly; "
            f"rebuilt are 'llama', and 'gpt2' with {', '.join(sorted(known))}: {_HUB}"
        )
    fields = {
        "tokenizer_type": model,
        "pre_tokenizer_type": pre,
        "tokens": header.get("tokenizer.ggml.tokens"),
        "token_type": header.get("tokenizer.ggml.token_type"),
    }
    for name in ("scores", "merges"):
        if f"tokenizer.ggml.{name}" in header.values:
            fields[name] = header.values[f"tokenizer.ggml.{name}"]
    backend: dict[str, Any] = json.loads(convert_gguf_tokenizer(header.architecture, fields)[0].to_str())
    if len(backend["model"]["vocab"]) > len(fields["tokens"]):
        raise InvalidArgument(f"{header.path.name} lists tokens that its vocabulary cannot spell; {_HUB}")
    backend["model"]["ignore_merges"] = pre in _WHOLE_WORDS
    if model == "llama" and not header.architecture.startswith("gemma"):
        backend |= _as_sentencepiece(prefix=bool(header.values.get("tokenizer.ggml.add_space_prefix", True)))
    return backend


def _as_sentencepiece(*, prefix: bool) -> dict[str, Any]:
    """What transformers decides by the class, and the file says: a space before each text, also one that begins with one."""
    spaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    before: list[Any] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after: list[Any] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaced]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
    }


def _post_processor(header: GgufHeader, model: str) -> dict[str, Any] | None:
    """What is put before and behind a text."""
    tokens: list[str] = header.get("tokenizer.ggml.tokens")
    # Old files have no flag, and llama.cpp begins a text of a sentencepiece vocabulary with BOS unless it says otherwise.
    before = header.values.get("tokenizer.ggml.add_bos_token", model == "llama" or _begins(header))
    behind = header.values.get("tokenizer.ggml.add_eos_token", False)
    ids = {"bos": before, "eos": behind}
    put = {key: int(header.get(f"tokenizer.ggml.{key}_token_id")) for key, wanted in ids.items() if wanted}
    if not put:
        return None

    def special(key: str, type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[put[key]], "type_id": type_id}}] if key in put else []

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        return [*special("bos", type_id), {"Sequence": {"id": sequence, "type_id": type_id}}, *special("eos", type_id)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in sorted(set(put.values()))
        },
    }


def _begins(header: GgufHeader) -> bool:
    """Whether llama.cpp begins a text with BOS by the way of splitting alone."""
    return header.values.get("tokenizer.ggml.pre") in {"llama3", "llama-v3", "llama-bpe"}


def _named(header: GgufHeader) -> dict[str, str]:
    tokens: list[str] = header.get("tokenizer.ggml.tokens")
    found = {name: header.values.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED}
    return {f"{name}_token": tokens[index] for name, index in found.items() if index is not None}


def _smollm(header: GgufHeader) -> dict[str, dict[str, Any]]:
    """SmolLM2's, whose digits stand alone: a way of splitting that transformers does not rebuild."""
    tokens: list[str] = header.get("tokenizer.ggml.tokens")
    types: list[int] = header.get("tokenizer.ggml.token_type")
    special = {index: _special(tokens[index]) for index, type_ in enumerate(types) if type_ == _CONTROL}
    named = _named(header)
    return {
        "tokenizer.json": _tokenizer(tokens, header.get("tokenizer.ggml.merges"), special),
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(index): token for index, token in special.items()},
            "additional_special_tokens": sorted({named["bos_token"], named["eos_token"]}, reverse=True),
            **named,
            "chat_template": header.get("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": header.get("llama.context_length"),
            # The class that takes tokenizer.json as it is; GPT2Tokenizer would rebuild it without the digit rule.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "special_tokens_map.json": named,
    }


def _special(content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **flags}


def _tokenizer(tokens: list[str], merges: list[str], special: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **token} for index, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(add_prefix_space=False)],
        },
        "post_processor": None,
        "decoder": _byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True}
