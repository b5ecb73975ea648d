"""What the model would say if it stopped at each layer: the logit lens, with the model's own final norm and unembedding.

The stream after each layer is put in the place of the last layer's, so nothing about the family's norm is guessed. The
server sends the best token and the next token's log-probability of each row; no vocabulary crosses the wire.

    python examples/logit_lens.py [--url grpc://host:50051]
"""

from __future__ import annotations

from itertools import pairwise

import matplotlib.patheffects as effects
import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.plots.style import SEQUENTIAL, colorbar, new, title, token_axis
from probewire.clients import Client, TopK, capture, patch

TEXT = "The Eiffel Tower is located in the city of Paris"


def main() -> None:
    """Two requests: the streams, then every layer's reading of them."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        run = client.run(TEXT, capture=["resid_post.*"], model=args.model)
        streams = run.stack("resid_post")  # [layer, pos, d_model]
        best, logprobs = lens(client, args.model, run.token_ids, streams)
        words = np.array(client.tokenize(best.ravel(), model=args.model).tokens).reshape(best.shape)
    for layer in range(0, len(words), 3):
        print(f"layer {layer:>2}  " + " ".join(f"{word.strip()[:10]:<10}" for word in words[layer, :-1]))
    plot(run.tokens, words, logprobs, run.started.model)


def lens(client: Client, model: str, token_ids: tuple[int, ...], streams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best token ids [layer, pos] and log-probabilities of the actual next token [layer, pos − 1]."""
    last = f"resid_post.{len(streams) - 1}"
    names = [f"layer {layer}" for layer in range(len(streams))]
    hooks = [patch(last, value=stream, inputs=name) for name, stream in zip(names, streams, strict=True)]
    reads = [capture("logits", reduce=TopK(1), id="best"), capture("logits", reduce="next_logprob", id="next")]
    run = client.run({name: list(token_ids) for name in names}, hooks=hooks, capture=reads, model=model)
    best = [run.inputs[name].hook("best").top_k("logits")[1][:, 0] for name in names]
    logprobs = [run.inputs[name].hook("next")["logits"] for name in names]
    return np.stack(best), np.stack(logprobs)


def plot(tokens: tuple[str, ...], words: np.ndarray, logprobs: np.ndarray, model: str) -> None:
    """A cell a layer and position: the best token as text, the next token's probability as colour."""
    figure, axes = new(10.5, 8)
    image = axes.imshow(np.exp(logprobs), origin="lower", aspect="auto", cmap=SEQUENTIAL, vmin=0, vmax=1)
    outline = [effects.withStroke(linewidth=1.6, foreground="black", alpha=0.6)]
    for layer in range(words.shape[0]):
        for pos in range(words.shape[1] - 1):
            word = words[layer, pos].replace("\n", "⏎").strip() or "␣"
            text = axes.text(pos, layer, word[:14], ha="center", va="center", fontsize=6.5, color="white")
            text.set_path_effects(outline)
    token_axis(axes, [f"{token}→{following}" for token, following in pairwise(tokens)], rotation=25)
    axes.set_ylabel("layer whose stream is read")
    title(
        axes,
        "Where along the depth the next word becomes known",
        f"logit lens of {model}; text: best token; colour: the token that does follow",
    )
    colorbar(figure, image, axes, "probability")
    save(figure, "logit_lens")


if __name__ == "__main__":
    main()
