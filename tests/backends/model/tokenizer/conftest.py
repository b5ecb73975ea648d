"""One tokenizer of every kind, with the library's own beside it."""

from __future__ import annotations

from typing import Any

import pytest

from probewire.backends.model.tokenizer import Tokenizer
from tests.tiny_tokenizers import KINDS, VOCAB_SIZE, Kind, tokenizer_folder


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    import tokenizers

    folder = tokenizer_folder(request.param, tmp_path_factory.mktemp("kinds") / request.param)
    theirs: Any = tokenizers.Tokenizer
    return Kind(request.param, folder, Tokenizer(folder, VOCAB_SIZE), theirs.from_file(str(folder / "tokenizer.json")))
