"""One model, five kinds of work: arithmetic, a fact, a story, copying, and prose; where each answer is made, and how attention goes.

For every prompt one look at the stream by layer, the parts that write the answer, from which depth on the answer stands first,
and how much of attention rests on the first token or the one before.

    python examples/five_tasks.py [--url grpc://host:50051]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.attribution import direct_logit, logit_lens
from probewire.analysis.plots.style import PALETTE, new, title
from probewire.clients import Client, Logit

PROMPTS = {
    "arithmetic": "2 + 2 = 4, 3 + 3 = 6, 4 + 4 =",
    "a fact": "The capital of France is",
    "a story": "Once upon a time there was a little",
    "copying": "apple, river, stone, cloud, apple, river, stone,",
    "prose": "The purpose of the committee is to",
}


def main() -> None:
    """Read every prompt, draw the growth of the streams."""
    args = arguments(__doc__)
    norms: dict[str, Any] = {}
    with connected(args.url) as client:
        model = client.describe(args.model).id
        for name, prompt in PROMPTS.items():
            norms[name] = read(client, name, prompt, args.model)
    figure, axes = new(7.0, 4.0)
    for colour, (name, values) in zip(PALETTE, norms.items(), strict=False):
        axes.plot(values, color=colour, label=name)
    axes.set(yscale="log", xlabel="layer", ylabel="‖resid_post‖")
    axes.legend()
    title(axes, "The stream at the last token grows alike, whatever is asked", model)
    save(figure, "five_tasks")


def read(client: Client, name: str, prompt: str, model: str) -> Any:
    """Print what a prompt's run says; [layer]: norm of the stream at its last token."""
    run = client.run(prompt, capture=["resid_post.*", "attn_probs.*", "logits"], model=model, progress=False)
    best = int(np.argmax(run["logits"][-1]))
    lens = logit_lens(client, prompt, k=1, targets=[best], positions=[-1], model=model)
    assert lens.target_ranks is not None  # a target was asked for
    ranks = lens.target_ranks[:, 0, 0]
    behind = np.flatnonzero(ranks > 0)
    first = int(behind[-1]) + 1 if len(behind) else 0
    probs = np.stack([run[f"attn_probs.{i}"] for i in range(client.describe(model).n_layers)])[:, :, -1]
    parts = direct_logit(client, prompt, Logit(best), model=model).parts
    strong = sorted(parts, key=lambda part: -abs(parts[part]))[:3]
    print(f"{name}: {prompt!r} → {lens.words[-1, 0]!r}")
    print(
        f"  first of all tokens from layer {first} of {len(ranks)} on; written by "
        + ", ".join(f"{p} {parts[p]:+.1f}" for p in strong)
    )
    print(
        f"  attention of the last token: {probs[..., 0].mean():.0%} on the first, {probs[..., -2].mean():.0%} on the one before"
    )
    return np.linalg.norm(run.stack("resid_post")[:, -1], axis=-1)


if __name__ == "__main__":
    main()
