"""What ends a generation: whatever the files name, each on its own and together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.model.tokenizer import Tokenizer
from tests.tiny_tokenizers import CHATML, SPECIAL, VOCAB_SIZE, tokenizer_folder

UNK, BOS, EOS, IM_START, IM_END = range(len(SPECIAL))
NOT_LAST = (
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + ('</s>' if loop.last else '<|im_end|>') }}{% endfor %}"
)


def _ends(folder: Path, *, configs: Any = None, template: str | None = None, eos: str | None = None) -> tuple[int, ...]:
    options = {"chat_template": template} if template else {}
    tokenizer_folder("byte_level", folder, eos_token=eos, **options)
    for name in ("config", "generation_config"):
        (folder / f"{name}.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": configs}))
    return Tokenizer(folder, VOCAB_SIZE).end_ids


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ()),
        ({"eos": "</s>"}, (EOS,)),
        ({"configs": 0, "eos": "<|im_end|>"}, (UNK, IM_END)),  # the configs are older than the tokenizer
        ({"configs": [EOS, IM_END]}, (EOS, IM_END)),
        ({"configs": EOS, "template": CHATML}, (EOS, IM_END)),  # nobody but the template names the end of a turn
        ({"template": NOT_LAST}, (EOS,)),  # gpt-oss: a mark between messages ends no generation
        ({"template": "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '\n' }}{% endfor %}"}, ()),
        ({"template": "{{ raise_exception('roles') }}", "eos": "</s>"}, (EOS,)),
        ({"configs": [True, "2", 10**6, -1, EOS]}, (EOS,)),
    ],
)
def test_ends_are_named_anywhere(tmp_path: Path, options: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert _ends(tmp_path, **options) == expected


def test_a_mark_that_is_no_special_token_is_left_out_of_the_text_too(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "<think>")  # an added token that is not special, as phi3's <|end|> may be
    tokenizer_folder("byte_level", tmp_path, chat_template=template)
    ours = Tokenizer(tmp_path, VOCAB_SIZE)
    (end,) = set(ours.end_ids) - {EOS}
    assert (ours.token(end), end in ours.hidden_ids) == ("<think>", True)


def test_both_configs_count_and_a_nested_one(tmp_path: Path) -> None:
    tokenizer_folder("byte_level", tmp_path, eos_token=None)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": IM_END}))
    nested = {"model_type": "gemma3", "eos_token_id": IM_START, "text_config": {"eos_token_id": [EOS]}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert Tokenizer(tmp_path, VOCAB_SIZE).end_ids == (EOS, IM_START, IM_END)
