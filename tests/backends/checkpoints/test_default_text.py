"""The real default model answers as the upstream model does, and the same on both backends, in float32."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model
from transformers import AutoModelForCausalLM, AutoTokenizer

MARY = "When Mary and John went to the store, John gave a drink to"
MAX_LOGIT_DIFFERENCE = 1e-3


@pytest.fixture(scope="module")
def tokenizer(default_checkpoint):
    return AutoTokenizer.from_pretrained(default_checkpoint.folder)


@pytest.fixture(scope="module")
def torch_logits(default_checkpoint, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(default_checkpoint.folder).eval()
    assert model.dtype == torch.float32

    def logits(text: str) -> np.ndarray:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).logits[0].numpy()

    return logits


def test_mary(tokenizer, torch_logits):
    row = torch_logits(MARY)[-1].astype(np.float64)
    share = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    assert tokenizer.decode([row.argmax()]) == " Mary"
    assert share.max() == pytest.approx(0.92, abs=0.01)


def test_paris(tokenizer, torch_logits):
    assert tokenizer.decode([torch_logits("The capital of France is")[-1].argmax()]) == " Paris"


def test_mlx_agrees_on_the_folder_as_it_is(default_checkpoint, tokenizer, torch_logits):
    model, _ = load_model(default_checkpoint.folder)
    ids = mx.array([tokenizer(MARY).input_ids])
    assert np.abs(np.array(model(ids)[0]) - torch_logits(MARY)).max() < MAX_LOGIT_DIFFERENCE


def test_tokenizer(tokenizer):
    assert tokenizer.tokenize("It cost 12345 in 2024.") == [
        *("It", "Ġcost", "Ġ", "1", "2", "3", "4", "5", "Ġin", "Ġ", "2", "0", "2", "4", ".")
    ]
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer(chat).input_ids[0] == 1


def test_generation_stops_at_the_end_of_a_turn(default_checkpoint):
    generation = json.loads((default_checkpoint.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
