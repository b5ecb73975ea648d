"""A chat turn with every layer's residual stream captured while it is generated, and how that stream grows.

python examples/capture_in_chat.py [--url grpc://host:50051]
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm
from plots import save
from serving import arguments, connected

from probewire.analysis.plots.style import SEQUENTIAL, colorbar, new, title, token_axis
from probewire.clients import Generation

MESSAGES = [{"role": "user", "content": "Name three colours of the rainbow."}]


def main() -> None:
    """Generate, look at what came, plot."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        result = client.generate_with_activations(
            MESSAGES, capture=["resid_post.*"], model=args.model, max_new_tokens=24, progress=True
        )
    print(result)
    # every position but the last sampled token, which the model never read
    print("\nlast layer:", result[f"resid_post.{len(result.stack('resid_post')) - 1}"].shape, "positions × d_model")
    plot(result)


def plot(result: Generation) -> None:
    """Norm of the residual stream, by layer and position."""
    norms = np.linalg.norm(result.stack("resid_post").astype(np.float32), axis=-1)  # [layer, pos]
    n_prompt, tokens = len(result.only.prompt_ids), result.tokens[: norms.shape[1]]
    figure, axes = new(10.5, 4.6)
    image = axes.imshow(norms, origin="lower", aspect="auto", cmap=SEQUENTIAL, norm=LogNorm())
    axes.axvline(n_prompt - 0.5, color="white", linewidth=1.5)
    axes.text(n_prompt - 0.2, len(norms) - 1, "generated →", color="white", fontsize=8, va="top")
    token_axis(axes, tokens)
    axes.set_ylabel("layer")
    title(
        axes,
        "The residual stream grows with depth, and the first token holds a norm of its own",
        f"‖resid_post‖ of {result.started.model}, prompt and {len(tokens) - n_prompt} generated tokens, one request",
    )
    colorbar(figure, image, axes, "norm")
    save(figure, "capture_in_chat")


if __name__ == "__main__":
    main()
