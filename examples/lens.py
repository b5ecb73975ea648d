"""When the model knows its answer, and which parts write it: the logit lens and direct logit attribution.

The lens reads the stream after each layer with the model's own final norm and unembedding. Direct logit attribution then
takes the answer apart: the stream is a sum of what every part wrote, so with the norm's scale held the logit difference
is one too. Both are one or two requests; no weights and no vocabulary cross the wire.

    python examples/lens.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.attribution import direct_logit, logit_lens
from probewire.analysis.plots import head_grid, lens_table, score_bars
from probewire.clients import Client
from probewire.protos.metrics import LogitDifference

OUTPUT = Path(__file__).parent / "output"
TEXT = "When Mary and John went to the store, John gave a drink to"
ANSWER, OTHER = " Mary", " John"


def main() -> None:
    """What each layer says, when the answer comes first, and who wrote it."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        model = client.describe(args.model).id
        read(client, model)
        take_apart(client, model)
    for name in ("lens", "lens_parts", "lens_heads"):
        print(f"plot: {OUTPUT / name}.png")


def read(client: Client, model: str) -> None:
    """The likeliest token by layer and position, and how the answer rises at the last one."""
    seen = logit_lens(client, TEXT, model=model)
    lens_table(
        seen.words,
        seen.best,
        seen.tokens,
        what="Where along the depth the next word becomes known",
        how=f"logit lens of {model}; in each cell the likeliest next token, coloured by its probability",
        path=OUTPUT / "lens.png",
    )
    ids = [client.token(word, model=model) for word in (ANSWER, OTHER)]
    end = logit_lens(client, TEXT, k=1, targets=ids, positions=[-1], model=model)
    assert end.target_ranks is not None  # targets were asked for
    assert end.target_probabilities is not None
    print(f"At the end of {TEXT!r}, how many tokens are likelier than {ANSWER!r} and than {OTHER!r}:")
    for layer in range(0, len(end.layers), 4):
        answer, other = end.target_ranks[layer, 0]
        print(f"  after layer {layer:>2}: {answer:>5} {other:>5}   says {end.words[layer, 0]!r}")
    last = end.target_probabilities[-1, 0]
    print(f"  the model:       p({ANSWER!r}) = {last[0]:.3f}, p({OTHER!r}) = {last[1]:.3f}")


def take_apart(client: Client, model: str) -> None:
    """The logit difference as a sum over layers' attention and MLPs, and over heads."""
    metric = LogitDifference((client.token(ANSWER, model=model),), (client.token(OTHER, model=model),))
    found = direct_logit(client, TEXT, metric, heads=True, model=model)
    assert found.heads is not None  # asked for
    print(f"\nlogit({ANSWER!r}) − logit({OTHER!r}) = {found.metric:+.3f}; its parts sum to {found.total:+.3f}")
    parts = found.parts
    score_bars(
        list(parts),
        np.array(list(parts.values())),
        top=20,
        what="Who writes the answer",
        how=f"{model}: direct contribution to logit({ANSWER.strip()}) − logit({OTHER.strip()}), in all {found.metric:+.2f}",
        label="logits",
        path=OUTPUT / "lens_parts.png",
    )
    head_grid(
        found.heads,
        what="Which heads write the answer",
        how=f"{model}: direct contribution to the logit difference",
        label="logits",
        path=OUTPUT / "lens_heads.png",
    )
    strongest = np.argsort(-np.abs(found.heads.values), axis=None)[:5]
    for layer, head in zip(*np.unravel_index(strongest, found.heads.shape), strict=True):
        print(f"  head {layer}.{head} writes {found.heads.values[layer, head]:+.2f}")


if __name__ == "__main__":
    main()
