"""Activation patching: which position of which layer carries the name that the sentence must end with.

`clean` ends in Mary, `corrupt` in John; they differ in one word. Every patched run is an input of its own that takes one
row of resid_pre from `clean`, inside the server: no activation crosses the wire, only two logits a run.

    python examples/patch_one_site.py [--url grpc://host:50051]
"""

from __future__ import annotations

import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.plots.style import DIVERGING, colorbar, new, title, token_axis
from probewire.clients import Client, Gather, Hook, capture, patch

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
NAMES = (" Mary", " John")
INPUTS_A_REQUEST = 60
"""The server takes 64."""


def main() -> None:
    """Baselines, then a patched run for every layer and position."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        info = client.describe(args.model)
        clean, corrupt = (client.tokenize(text, model=args.model) for text in (CLEAN, CORRUPT))
        if len(clean.token_ids) != len(corrupt.token_ids):
            raise SystemExit(
                f"the prompts have {len(clean.token_ids)} and {len(corrupt.token_ids)} tokens; they must pair"
            )
        names = [client.tokenize(name, model=args.model).token_ids[-1] for name in NAMES]
        read = capture("logits", reduce=Gather(tuple(names)), positions=-1)
        base = differences(client, args.model, ["clean", "corrupt"], [], read)
        print(f"logit(Mary) − logit(John): clean {base['clean']:+.2f}, corrupt {base['corrupt']:+.2f}")
        cells = [(layer, pos) for layer in range(info.n_layers) for pos in range(len(clean.token_ids))]
        patched = np.zeros((info.n_layers, len(clean.token_ids)))
        for start in range(0, len(cells), INPUTS_A_REQUEST):
            some = cells[start : start + INPUTS_A_REQUEST]
            hooks = [
                patch(f"resid_pre.{layer}", from_input="clean", positions=pos, inputs=f"{layer} {pos}")
                for layer, pos in some
            ]
            found = differences(client, args.model, [f"{layer} {pos}" for layer, pos in some], hooks, read)
            for layer, pos in some:
                patched[layer, pos] = found[f"{layer} {pos}"]
    restored = (patched - base["corrupt"]) / (base["clean"] - base["corrupt"])
    layer, pos = np.unravel_index(restored[: info.n_layers // 2].argmax(), (info.n_layers // 2, restored.shape[1]))
    print(f"in the first half, layer {layer} at {corrupt.tokens[pos]!r} restores most: {restored[layer, pos]:.0%}")
    plot(restored, corrupt.tokens, info.id)


def differences(client: Client, model: str, names: list[str], hooks: list[Hook], read: Hook) -> dict[str, float]:
    """logit(Mary) − logit(John) at the end of each named input; all but `clean` are the corrupt prompt."""
    inputs = {"clean": CLEAN} | {name: CORRUPT for name in names if name != "clean"}
    run = client.run(inputs, hooks=hooks, capture=read, model=model)
    return {name: float(np.subtract(*item["logits"][0])) for name, item in run.inputs.items()}


def plot(restored: np.ndarray, tokens: tuple[str, ...], model: str) -> None:
    """Share of the clean answer that one patched row brings back."""
    figure, axes = new(8, 6)
    image = axes.imshow(restored, origin="lower", aspect="auto", cmap=DIVERGING, vmin=-1, vmax=1)
    token_axis(axes, tokens)
    axes.set_xlabel("position patched (tokens of the corrupt prompt)")
    axes.set_ylabel("layer of resid_pre")
    title(
        axes,
        "The name moves from where it stands to where it is needed",
        f"{model}: one row of resid_pre taken from the clean prompt; 1 = the clean answer is back",
    )
    colorbar(figure, image, axes, "share of the logit difference restored")
    save(figure, "patch_one_site")


if __name__ == "__main__":
    main()
