"""Inputs to ids: special tokens once, and what is no prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library, processors

from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input, Message
from tests.tiny_tokenizers import CHATML, KINDS, VOCAB_SIZE, Kind, tokenizer_folder

WITH_BOS = "{{ bos_token }}" + CHATML


@pytest.mark.parametrize("name", [name for name in KINDS if name != "wordpiece"])
def test_a_text_that_the_template_rendered_has_one_beginning(tmp_path: Path, name: str) -> None:
    ours = Tokenizer(tokenizer_folder(name, tmp_path, chat_template=WITH_BOS), VOCAB_SIZE)
    messages = (Message("user", "When Mary and John went to the store"),)
    asked = ours.encode(Input(messages=messages))
    rendered = "<s><|im_start|>user\nWhen Mary and John went to the store<|im_end|>\n<|im_start|>assistant\n"
    assert ours.encode(Input(rendered)) == asked
    assert asked.count(1) == 1


def test_special_tokens_are_added_where_there_are_none(kind: Kind) -> None:
    bos = kind.theirs.token_to_id("[CLS]" if kind.name == "wordpiece" else "<s>")
    plain = kind.encode("Mary")
    assert (plain[0], plain.count(bos)) == (bos, 1)
    begun = kind.encode(("[CLS]" if kind.name == "wordpiece" else "<s>") + " Mary")
    assert (begun[0], begun.count(bos)) == (bos, 1)
    assert kind.ours.encode(Input(token_ids=(bos, bos, 7))) == [bos, bos, 7], "ids stay as they are given"


def test_an_end_is_added_once_too(tmp_path: Path) -> None:
    folder = tokenizer_folder("byte_level", tmp_path)
    library: Library = Library.from_file(str(folder / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(
        single="<s> <|im_start|> $A </s>", special_tokens=[("<s>", 1), ("<|im_start|>", 3), ("</s>", 2)]
    )
    library.save(str(folder / "tokenizer.json"))
    ours = Tokenizer(folder, VOCAB_SIZE)
    mary = ours.encode(Input(" Mary"))[2:-1]
    for text, expected in (
        (" Mary", [1, 3, *mary, 2]),
        ("<s><|im_start|> Mary</s>", [1, 3, *mary, 2]),
        (" Mary</s>", [1, 3, *mary, 2]),
        ("<s> Mary", [1, 3, 1, *mary, 2]),  # not what the tokenizer would have begun with
    ):
        assert ours.encode(Input(text)) == expected


def test_nothing_is_no_prompt(kind: Kind) -> None:
    with pytest.raises(InvalidArgument, match="has no tokens"):
        kind.ours.encode(Input(""))
    with pytest.raises(InvalidArgument, match="no chat template"):
        kind.ours.encode(Input(messages=(Message("user", "Hi"),)))
    with pytest.raises(InvalidArgument, match=f"token id {VOCAB_SIZE}; the vocabulary is 0 … {VOCAB_SIZE - 1}"):
        kind.ours.encode(Input(token_ids=(0, VOCAB_SIZE)))


LLAVA = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] | "
    "selectattr('type', 'equalto', 'image') %}<image>{% endfor %}{% for part in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Of a string it writes nothing and says nothing."""


def test_a_template_that_reads_parts_alone_gets_them(tmp_path: Path) -> None:
    ours = Tokenizer(tokenizer_folder("byte_level", tmp_path, chat_template=LLAVA), VOCAB_SIZE)
    messages = (Message("user", "When Mary and John"), Message("assistant", "went"), Message("user", "to the store"))
    expected = "USER: When Mary and John ASSISTANT: went USER: to the store ASSISTANT:"
    assert ours.decode(ours.encode(Input(messages=messages))) == expected


def test_a_template_in_the_file_of_the_first_models_that_see(tmp_path: Path) -> None:
    folder = tokenizer_folder("byte_level", tmp_path)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))
    ours = Tokenizer(folder, VOCAB_SIZE)
    assert ours.has_chat_template
    assert ours.decode(ours.encode(Input(messages=(Message("user", "Mary"),)))) == "USER: Mary ASSISTANT:"
