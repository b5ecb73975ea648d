"""A second real model, Gemma 3 270M, on both backends: against transformers' own forward, and against each other.

Local and global attention, four norms a layer, one key head for four, and a vocabulary of 262 thousand. `make test` fetches
it (240 MB) where pip finds it; whoever runs these tests accepts Google's Gemma Terms of Use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from probewire.backends.checkpoints import resolve_model
from probewire.backends.model.limits import Limits
from probewire.clients import Client, Logit, TopK, capture, steer
from probewire.protos.errors import FailedPrecondition, InvalidArgument, Unavailable
from probewire.server.worker.inprocess import InProcessService
from tests.parity.harness import relative_error

pytestmark = [pytest.mark.gemma, pytest.mark.timeout(400)]

N_LAYERS, WINDOW, D_MODEL, VOCAB = 18, 512, 640, 262_144
FRANCE = "The capital of France is"
LICENCE = (Path(__file__).parents[2] / "LICENSE").read_text()
N_LONG, N_NEW = 530, 16
LIMITS = Limits(n_slots=2, context_tokens=640, cache_tokens=1280, chunk_tokens=200)
BACKENDS = ("torch", "mlx")

RESIDUALS = 1e-6
"""Relative error of the residual stream against transformers' eager forward, torch, at every layer and position."""
BETWEEN = 1e-4
"""… of every site between the backends; the table's bound for float32."""


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return resolve_model("gemma-3-270m", licensed=True).folder
    except Unavailable as error:  # an index may have no such packages; other faults are faults
        pytest.skip(f"Gemma 3 270M cannot be had here: {error.message}")


@pytest.fixture(scope="module")
def clients(folder: Path) -> Iterator[dict[str, Client]]:
    made = {name: _client(folder, name) for name in BACKENDS}
    yield made
    for client in made.values():
        client.close()


def _client(folder: Path, backend: str) -> Client:
    service = InProcessService.create(folder, backend=backend, dtype="float32", device="cpu", engine=LIMITS)
    return Client.inprocess(service)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def long(clients: dict[str, Client]) -> list[int]:
    """Real text of more tokens than the window."""
    return list(clients["torch"].tokenize(LICENCE).token_ids[:N_LONG])


def _states(model: Any, tokens: list[int]) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """What each layer hands on, and the last row's logits."""
    kept: list[np.ndarray[Any, Any]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _m, _a, out: kept.append((out if torch.is_tensor(out) else out[0])[0].numpy())
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), logits_to_keep=1).logits[0, -1].numpy()
    for hook in hooks:
        hook.remove()
    return kept, logits


def test_what_it_is(clients: dict[str, Client], folder: Path) -> None:
    for client in clients.values():
        info = client.describe()
        assert (info.n_layers, info.d_model, info.n_heads, info.n_kv_heads) == (N_LAYERS, D_MODEL, 4, 1)
        assert (info.vocab_size, info.d_head, info.architecture) == (VOCAB, 256, "gemma3_text")
        assert info.generate
    assert "Gemma Terms of Use" in (folder / "GEMMA_TERMS.html").read_text()


def test_residuals_at_every_layer_past_the_window(clients: dict[str, Client], theirs: Any, long: list[int]) -> None:
    states, _ = _states(theirs, long)
    found = clients["torch"].run(long, capture=["resid_post.*"]).stack("resid_post")
    worst = max(relative_error(found[i], states[i]) for i in range(N_LAYERS))
    assert worst <= RESIDUALS, worst


@pytest.mark.parametrize("name", ["torch", pytest.param("mlx", marks=pytest.mark.slow)])  # MLX: 35 s of a core
def test_generation_past_the_window_is_transformers(
    clients: dict[str, Client], theirs: Any, long: list[int], name: str
) -> None:
    made = clients[name].generate(long, max_new_tokens=N_NEW, temperature=0, ignore_eos=True)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([long]), max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False, pad_token_id=0
        )
    assert list(made.token_ids) == expected[0].tolist()
    assert len(long) > WINDOW, "the window has moved before the first new token"


def test_mlx_past_the_window_with_two_layers(folder: Path, long: list[int], tmp_path: Path) -> None:
    """A local layer and a global one of the real model, 4 and 5: all 18 take MLX 35 s of a core (above, slow)."""
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_types"][4:6] == ["sliding_attention", "full_attention"]
    config |= {"num_hidden_layers": 2, "layer_types": config["layer_types"][4:6], "sliding_window_pattern": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    weights = {_moved(k): v for k, v in load_file(folder / "model.safetensors").items() if _moved(k)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model.eval().generate(
            torch.tensor([long]), max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
        )
    client = _client(tmp_path, "mlx")
    made = client.generate(long, max_new_tokens=8, temperature=0, ignore_eos=True)
    client.close()
    assert list(made.token_ids) == expected[0].tolist()


def _moved(name: str) -> str:
    """A weight's name where layers 4 and 5 are the first; empty for other layers'."""
    if not name.startswith("model.layers."):
        return name
    first, second, layer, rest = name.split(".", 3)
    return f"{first}.{second}.{int(layer) - 4}.{rest}" if layer in ("4", "5") else ""


def test_every_site_is_the_same_on_both(clients: dict[str, Client]) -> None:
    sites = [site.name + (".*" if site.layers is not None else "") for site in clients["torch"].describe().sites]
    one, other = (client.run(FRANCE, capture=sites) for client in clients.values())
    assert one.sites == other.sites
    worst = max((relative_error(other[site], one[site]), site) for site in one.sites)
    assert worst[0] <= BETWEEN, worst


def test_it_knows_what_it_should(clients: dict[str, Client], theirs: Any) -> None:
    for client in clients.values():
        made = client.generate(FRANCE, max_new_tokens=6, temperature=0)
        assert made.text == " the capital of the country of"
    tokens = list(clients["torch"].tokenize(FRANCE).token_ids)
    assert tokens[0] == 2, "<bos>"
    logits = _states(theirs, tokens)[1]
    for client in clients.values():
        found = client.run(FRANCE, capture=["logits"])["logits"]
        assert found.shape == (len(tokens), VOCAB)
        assert relative_error(found[-1], logits) <= BETWEEN


def test_gradients_are_autograds(clients: dict[str, Client], theirs: Any) -> None:
    client = clients["torch"]
    tokens, token = list(client.tokenize(FRANCE).token_ids), client.token(" Paris")
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, out: Any) -> None:
        kept.append(out.requires_grad_() if not out.requires_grad else out)
        kept[-1].retain_grad()

    with torch.enable_grad():
        hook = theirs.model.layers[5].register_forward_hook(keep)
        theirs(torch.tensor([tokens])).logits[0, -1, token].backward()
        hook.remove()
    expected = kept[0].grad
    assert expected is not None
    for one in clients.values():
        found = one.gradients(FRANCE, Logit(token), at="resid_post.5").gradients["resid_post.5"]
        assert relative_error(found, expected[0].numpy()) <= BETWEEN


def test_steering_does_what_it_says_and_leaves_nothing(clients: dict[str, Client], theirs: Any) -> None:
    direction = np.random.default_rng(0).normal(size=D_MODEL).astype(np.float32)
    tokens = list(clients["torch"].tokenize(FRANCE).token_ids)

    def add(_module: Any, _args: Any, out: Any) -> Any:
        return out + 40.0 * torch.from_numpy(direction)

    hook = theirs.model.layers[9].register_forward_hook(add)
    expected = _states(theirs, tokens)[1]
    hook.remove()
    for client in clients.values():
        before = client.run(FRANCE, capture=["logits"])["logits"]
        steered = client.run(FRANCE, capture=["logits"], hooks=[steer("resid_post.9", direction, 40.0)])["logits"]
        assert relative_error(steered[-1], expected) <= BETWEEN
        assert relative_error(steered[-1], before[-1]) > 0.05
        assert np.array_equal(client.run(FRANCE, capture=["logits"])["logits"], before)
        texts = {
            client.generate(FRANCE, hooks=hooks, max_new_tokens=3, temperature=0).text
            for hooks in ([steer("resid_post.9", direction, 40.0)], [])
        }
        assert len(texts) == 2


def test_its_tokens(clients: dict[str, Client]) -> None:
    """Spaces, bytes and turns; a base model's file has no chat template, and messages are refused in words."""
    client = clients["torch"]
    for text in (
        "  two  spaces\n\n\ttab 123",
        "naïve 東京 🙂 ﷺ \x00",
        "<start_of_turn>user\nhi<end_of_turn>\n",
        LICENCE,
    ):
        tokenized = client.tokenize(text)
        assert tokenized.token_ids[0] == 2
        assert client.tokenize(tokenized.token_ids[1:]).text == text
    assert client.tokenize("<start_of_turn>").token_ids == (2, 105)
    with pytest.raises((FailedPrecondition, InvalidArgument), match="chat template"):
        client.generate([{"role": "user", "content": "hi"}], max_new_tokens=1)


def test_its_tokens_are_sentencepieces(clients: dict[str, Client], folder: Path) -> None:
    """The library that the vocabulary was made with cuts text as the rebuilt tokenizer does."""
    theirs = _sentence_pieces(folder)
    for text in (LICENCE[:6000], "  two  spaces\n\n\ttab 12345", "naïve 東京 🙂 ﷺ x̂", Path(json.__file__).read_text()):
        assert clients["torch"].tokenize(text).token_ids[1:] == tuple(theirs.encode(text)), text[:40]


def _sentence_pieces(folder: Path) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    file = json.loads((folder / "tokenizer.json").read_text())
    added = {token["id"]: token["special"] for token in file["added_tokens"]}
    made: Any = proto.ModelProto()
    for piece, i in file["model"]["vocab"].items():
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        kind = 6 if is_byte else 2 if piece == "<unk>" else {True: 3, False: 4, None: 1}[added.get(i)]
        made.pieces.add(piece=piece, score=-float(i), type=kind)
    made.trainer_spec.model_type, made.trainer_spec.byte_fallback = 2, True
    made.trainer_spec.unk_id, made.trainer_spec.bos_id, made.trainer_spec.eos_id, made.trainer_spec.pad_id = 3, 2, 1, 0
    made.normalizer_spec.add_dummy_prefix = made.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=made.SerializeToString())


def test_the_most_likely_of_a_large_vocabulary(clients: dict[str, Client]) -> None:
    """Reductions over 262 thousand entries, and the probability of a token: what whole logits give."""
    for client in clients.values():
        logits = client.run(FRANCE, capture=["logits"])["logits"].astype(np.float64)
        values, ids = client.run(FRANCE, capture=[capture("logits", reduce=TopK(5))]).captures.top_k("logits")
        order = np.argsort(-logits, axis=-1)[:, :5]
        assert np.array_equal(ids, order)
        assert np.allclose(values, np.take_along_axis(logits, order, -1), rtol=1e-5)
        made = client.generate(FRANCE, max_new_tokens=1, temperature=0, logprobs=5)
        last = logits[-1]
        log_total = np.log(np.exp(last - last.max()).sum()) + last.max()
        assert made.token_ids[-1] == order[-1, 0]
        assert made.logprobs is not None
        assert made.logprobs[0] == pytest.approx(last.max() - log_total, abs=1e-4)


def test_the_weights_are_the_files(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = set(file.keys())
    assert len(names) == 236
    assert "lm_head.weight" not in names, "tied"


@pytest.mark.slow  # two more loads on MLX, 15 s of a core each
def test_an_mlx_4_bit_folder_is_its_dequantised_self(folder: Path, tmp_path: Path) -> None:
    from mlx_lm import convert

    packed, plain = tmp_path / "4bit", tmp_path / "plain"
    convert(str(folder), mlx_path=str(packed), quantize=True, q_bits=4, q_group_size=64)
    convert(str(packed), mlx_path=str(plain), dequantize=True)
    assert "quantization" in json.loads((packed / "config.json").read_text())
    found: list[Any] = []
    for one in (packed, plain):
        client = _client(one, "mlx")
        sites = [site.name + (".*" if site.layers is not None else "") for site in client.describe().sites]
        made = client.generate(FRANCE, max_new_tokens=6, temperature=0)
        found.append((client.run(FRANCE, capture=sites), made.token_ids))
        client.close()
    (one, tokens), (other, expected) = found
    assert tokens == expected
    worst = max((relative_error(one[site], other[site]), site) for site in one.sites)
    assert worst[0] <= 1e-5, worst
