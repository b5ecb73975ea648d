"""Where an answer is decided: activation patching, heads one by one, what a head hears, and causal tracing.

`clean` ends in Mary, `corrupt` in John. Patching puts one clean value into the corrupt run and asks how much of the answer
comes back; every grid is one request. Path patching then asks from whom the strongest head has it, with all else held
still. Causal tracing needs no second prompt: the subject's embeddings are noised, and one clean state at a time is put back.

    python examples/patching.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.attribution import patch, path_patching, trace
from probewire.analysis.plots import head_grid, heat_map
from probewire.clients import Client, LogitDifference

OUTPUT = Path(__file__).parent / "output"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
FACT, SUBJECT, ANSWER = "The Eiffel Tower is in the city of", "Eiffel Tower", " Paris"


def main() -> None:
    """The stream, the heads, one head's senders, and a fact."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        model = client.describe(args.model).id
        metric = LogitDifference((client.token(" Mary", model=model),), (client.token(" John", model=model),))
        stream(client, metric, model)
        layer, head = heads(client, metric, model)
        senders(client, metric, model, layer, head)
        fact(client, model)
    for name in ("patching", "patching_heads", "patching_trace"):
        print(f"plot: {OUTPUT / name}.png")


def stream(client: Client, metric: LogitDifference, model: str) -> None:
    """The residual stream, each layer and position on its own."""
    found = patch(client, CLEAN, CORRUPT, "resid_pre", metric, model=model)
    clean, corrupt = found.clean.item(), found.corrupt.item()
    print(f"logit(Mary) − logit(John): clean {clean:+.2f}, corrupt {corrupt:+.2f}")
    share = found.normalised
    for layer in (0, 10, 20, 29):
        row = share.sel(layer=layer).values
        best = int(row.argmax())
        print(f"  layer {layer:>2}: {row[best]:4.0%} comes back from {found.tokens[best]!r} (position {best})")
    heat_map(
        share,
        found.tokens,
        what="The name moves from where it stands to where it is needed",
        how=f"{model}: one row of resid_pre taken from the clean prompt; 1 = the clean answer is back",
        label="share of the answer restored",
        path=OUTPUT / "patching.png",
    )


def heads(client: Client, metric: LogitDifference, model: str) -> tuple[int, int]:
    """Each head's output at the last position, clean in corrupt. Gives the layer and head that restore most."""
    found = patch(client, CLEAN, CORRUPT, "z", metric, positions=[-1], heads="all", model=model)
    share = found.normalised.sel(position=-1)
    head_grid(
        share,
        what="Which heads bring the name to the end",
        how=f"{model}: one head's z at the last position taken from the clean prompt",
        label="share of the answer restored",
        path=OUTPUT / "patching_heads.png",
    )
    best = [divmod(index, share.shape[1]) for index in np.argsort(-share.values, axis=None)[:5].tolist()]
    print("\nheads that restore most at the last position:")
    for layer, head in best:
        print(f"  {layer}.{head}: {share.values[layer, head]:+.0%}")
    return best[0]


def senders(client: Client, metric: LogitDifference, model: str, layer: int, head: int) -> None:
    """What earlier parts tell that head's query directly: the clean run, with one part's corrupt output on its way to it."""
    parts = ["embed", *(f"{kind}.{i}" for i in range(layer) for kind in ("attn_out", "mlp_out"))]
    found = path_patching(client, CLEAN, CORRUPT, parts, [(f"q.{layer}", head)], metric, model=model)
    effect = found.effect.values[:, 0]
    print(f"\nwho tells head {layer}.{head} where to look (change of the logit difference when they tell it wrong):")
    for index in np.argsort(-np.abs(effect))[:4]:
        print(f"  {parts[index]:<12} {effect[index]:+.2f}")


def fact(client: Client, model: str) -> None:
    """Causal tracing of a fact: every fifth layer, to be quick."""
    layers = list(range(0, client.describe(model).n_layers, 5))
    found = trace(
        client, FACT, SUBJECT, answer=ANSWER, sites=["resid_post", "mlp_out"], layers=layers, seeds=3, model=model
    )
    print(
        f"\np({ANSWER!r}) after {FACT!r}: {found.clean:.2f}; with noise on {SUBJECT!r}: {np.mean(found.corrupt.values):.3f}"
    )
    for site in ("resid_post", "mlp_out"):
        effect = found.effect.sel(site=site)
        layer, position = divmod(int(effect.values.argmax()), effect.shape[1])
        what = f"{site} of layer {layers[layer]}" + (" and around" if site == "mlp_out" else "")
        print(f"  {what} at {found.tokens[position]!r} restores {effect.values[layer, position]:+.2f}")
    heat_map(
        found.effect.sel(site="resid_post"),
        found.tokens,
        what=f"Where {ANSWER.strip()} is kept on the way",
        how=f"{model}: noise on {SUBJECT!r}, one clean state of resid_post put back",
        label=f"p({ANSWER.strip()}) restored",
        path=OUTPUT / "patching_trace.png",
    )


if __name__ == "__main__":
    main()
