"""Which names of a wrapper's weights are its text model's, and which are left out."""

from __future__ import annotations

import pytest

from probewire.backends.checkpoints.tower import is_wrapper, tower_of
from probewire.protos.errors import InvalidArgument

CONFIG = {"model_type": "llava", "text_config": {}}
NAMES = {
    "language_model.model.embed_tokens.weight": "model.embed_tokens.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "model.language_model.embed_tokens.weight": "model.embed_tokens.weight",
    "model.language_model.layers.0.self_attn.q_proj.scales": "model.layers.0.self_attn.q_proj.scales",
    "model.text_model.norm.weight": "model.norm.weight",
    "language_model.norm.weight": "model.norm.weight",
    "language_model.transformer.wte.weight": "transformer.wte.weight",
    "thinker.model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
    "thinker.lm_head.weight": "lm_head.weight",
    "model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
    "lm_head.weight": "lm_head.weight",
}
"""A file's name → the text model's, where the embedding stands beside it."""
LEFT_OUT = (
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "visual.merger.mlp.0.weight",
    "multi_modal_projector.linear_1.weight",
    "model.connector.modality_projection.proj.weight",
    "model.embed_vision.embedding_projection.weight",
    "model.embed_audio.embedding.weight",
    "audio_tower.embed_positions.weight",
    "image_newline",
    "mtp.layers.0.mlp.up_proj.weight",
)
_EMBEDDINGS = {
    "language_model.": "language_model.model.embed_tokens.weight",
    "model.language_model.": "model.language_model.embed_tokens.weight",
    "model.text_model.": "model.text_model.embed_tokens.weight",
    "thinker.": "thinker.model.embed_tokens.weight",
    "": "model.embed_tokens.weight",
}


def _embedding_beside(name: str) -> str:
    if name.startswith("language_model.transformer."):
        return "language_model.transformer.wte.weight"
    return next(embedding for root, embedding in _EMBEDDINGS.items() if name.startswith(root))


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_text_weight_has_the_name_that_it_has_by_itself(name: str, expected: str) -> None:
    found = tower_of(CONFIG, {_embedding_beside(name), name, *LEFT_OUT})
    assert found is not None
    assert found.names[name] == expected
    assert found.renamed(name) == expected
    assert found.left_out == set(LEFT_OUT)
    module = name.rpartition(".")[0]
    assert found.renamed(module) == expected.rpartition(".")[0]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_sees_and_hears_is_left_out(name: str) -> None:
    for embedding in _EMBEDDINGS.values():
        found = tower_of(CONFIG, [embedding, name])
        assert found is not None
        assert found.leaves_out(name)
        assert name not in found.names
        assert found.renamed(name) == name


def test_a_text_weight_is_never_left_out() -> None:
    """Whatever words its name has: it stands below the text model."""
    names = ["language_model.model.embed_tokens.weight", "language_model.model.layers.0.vision_gate.weight"]
    found = tower_of(CONFIG, names)
    assert found is not None
    assert set(found.names) == set(names)
    assert not found.leaves_out("model.layers.0.vision_gate.weight")
    assert not found.leaves_out("model.layers.1.self_attn.q_proj.weight"), "what has no place is an error"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["language_model.model.embed_tokens.weight", "adapters.0.weight"], "neither its text model's"),
        (["model.embed_tokens.weight", "score.weight"], r"neither its text model's .* score\.weight"),
        (["thinker.model.embed_tokens.weight", "talker.model.embed_tokens.weight"], "holds 2 language models"),
        (["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "x"], r"embed|neither"),
        (["vision_tower.embeddings.patch_embedding.weight"], "holds no text model"),
        (["text_model.embeddings.token_embedding.weight"], "holds no text model"),
        ([], "holds no text model"),
    ],
)
def test_what_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        tower_of(CONFIG, names)


def test_a_text_model_by_itself() -> None:
    assert not is_wrapper({"model_type": "llama"})
    assert tower_of({"model_type": "llama"}, ["model.embed_tokens.weight", "score.weight"]) is None
    assert is_wrapper({"model_type": "qwen2_vl", "hidden_size": 64}), "whose published config.json is flat"
