"""The tokenizer inside a GGUF file of llama.cpp's type `smollm`, as the files that transformers loads."""

from __future__ import annotations

from typing import Any, Protocol

from ...protos.errors import FailedPrecondition

__all__ = ["tokenizer_files"]

_CONTROL = 3
"""llama.cpp's token type for special tokens."""


class _Metadata(Protocol):
    def metadata(self, key: str) -> Any: ...


def tokenizer_files(gguf: _Metadata) -> dict[str, dict[str, Any]]:
    """File name -> its JSON content."""
    kind = (gguf.metadata("tokenizer.ggml.model"), gguf.metadata("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise FailedPrecondition(
            f"the GGUF file has a tokenizer of type {kind}; only ('gpt2', 'smollm') can be rebuilt"
        )
    tokens: list[str] = gguf.metadata("tokenizer.ggml.tokens")
    types: list[int] = gguf.metadata("tokenizer.ggml.token_type")
    special = {index: _special(tokens[index]) for index, type_ in enumerate(types) if type_ == _CONTROL}
    named = {
        f"{name}_token": tokens[gguf.metadata(f"tokenizer.ggml.{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    return {
        "tokenizer.json": _tokenizer(tokens, gguf.metadata("tokenizer.ggml.merges"), special),
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(index): token for index, token in special.items()},
            "additional_special_tokens": sorted({named["bos_token"], named["eos_token"]}, reverse=True),
            **named,
            "chat_template": gguf.metadata("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": gguf.metadata("llama.context_length"),
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
