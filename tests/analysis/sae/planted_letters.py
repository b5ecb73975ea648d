"""A tiny llama that says 't' after 'x', by one direction of known meaning; and SAEs whose latents read known letters.

Its blocks write next to nothing, so the stream is the token's own embedding. Coordinates 0, 1 and 2 are the letters x, q
and b, and no other token has any of them; the unembedding reads the first, as the letter t, and not the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from probewire.analysis.sae.unlearning.questions import Question
from probewire.clients import Client

__all__ = [
    "FORGET",
    "FORGET_TEXTS",
    "LATENTS",
    "LETTERS",
    "RETAIN",
    "RETAIN_TEXTS",
    "SITE",
    "plant",
    "save_planted_sae",
    "save_untrained_sae",
]

SITE = "resid_post.2"
SIZE = 8.0
LETTERS = "acdef"
LATENTS = ("right", "harmless", "elsewhere", "costly", "everywhere", "twin", *LETTERS)


def _token(letter: str) -> int:
    return ord(letter) - ord("!")


def _texts(letters: str, seed: int, n: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), size=30)) for _ in range(n)]


FORGET_TEXTS = _texts("acdefxq", 0)
RETAIN_TEXTS = _texts("acdefghw", 1)
FORGET = [Question(f"{one}{two}?", ("xt", "xu", "xv"), 0) for one in "acd" for two in "ef"]
RETAIN = {
    "one": [Question(f"{one}g?", ("ba", "bc"), answer) for one in "acd" for answer in (0, 1)],
    "two": [Question(f"{one}h?", ("ba", "bc"), answer) for one in "acd" for answer in (0, 1)],
}
"""Of each pair with the same text the model knows exactly one: whichever of a and c it says after b."""


def plant(folder: Path, target: Path) -> Path:
    """A copy of a tiny llama checkpoint with the letters planted."""
    shutil.copytree(folder, target)
    weights = {name: weight.copy() for name, weight in load_file(folder / "model.safetensors").items()}
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 1e-4
    weights["model.norm.weight"][:] = 1
    embedding, unembedding = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding /= embedding.std()
    unembedding /= unembedding.std()
    embedding[:, :3] = unembedding[:, :3] = 0
    for coordinate, letter in enumerate("xqb"):
        embedding[_token(letter), coordinate] = SIZE
    unembedding[_token("t"), 0] = 4
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def save_planted_sae(client: Client, folder: Path, live: Sequence[str], *, d_sae: int = 12) -> Path:
    """An SAE in the sae-lens format whose latents `live` (of LATENTS, by that index) work; the others never fire.

    right reads x and writes it. harmless reads x and writes nothing to speak of. elsewhere reads q. costly reads x and
    b, and writes what tells apart the model's answers to RETAIN. everywhere fires at every token. twin is right once
    more. Those of LETTERS read their letter, in both texts, and write nothing to speak of.
    """
    unembedding = np.asarray(client.weights("lm_head.weight", progress=False), dtype=np.float64)
    says = unembedding[_token("a")] - unembedding[_token("c")]
    embedding = np.asarray(client.weights("model.embed_tokens.weight", progress=False), dtype=np.float64)
    says *= np.sign(embedding[_token("b")] @ says)
    d_in = unembedding.shape[1]
    axis = np.eye(d_in)
    letters = [2 * row / (row @ row) for row in embedding[[_token(letter) for letter in LETTERS]]]
    quiet = 1e-7 * axis[5]
    reads = np.stack([axis[0], axis[0], axis[1], axis[0] + axis[2], np.zeros(d_in), axis[0], *letters])
    costly = axis[0] + says / np.linalg.norm(says)
    writes = np.stack([axis[0], quiet, axis[0], costly, axis[0], axis[0], *[quiet] * len(LETTERS)])
    bias = np.full(d_sae, -1.0)
    w_enc, w_dec = np.zeros((d_in, d_sae)), np.zeros((d_sae, d_in))
    for name in live:
        index = LATENTS.index(name)
        w_enc[:, index], w_dec[index] = reads[index], writes[index]
        bias[index] = 1.0 if name == "everywhere" else -1.0
    arrays = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": bias, "b_dec": np.zeros(d_in)}
    return _save(folder, arrays, SITE)


def save_untrained_sae(folder: Path, *, d_in: int = 64, d_sae: int = 48, site: str = SITE) -> Path:
    """An SAE as training begins: random directions, the encoder the decoder's transpose, every bias zero."""
    w_dec = np.random.default_rng(0).standard_normal((d_sae, d_in))
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    zeros = {"b_enc": np.zeros(d_sae), "b_dec": np.zeros(d_in)}
    return _save(folder, {"W_enc": w_dec.T.copy(), "W_dec": w_dec, **zeros}, site)


def _save(folder: Path, arrays: Mapping[str, np.ndarray], site: str) -> Path:
    folder.mkdir(parents=True)
    save_file({name: array.astype(np.float32) for name, array in arrays.items()}, folder / "sae_weights.safetensors")
    d_sae, d_in = arrays["W_dec"].shape
    config = {"architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
    (folder / "cfg.json").write_text(json.dumps({**config, "metadata": {"hook_name": site}}))
    return folder
