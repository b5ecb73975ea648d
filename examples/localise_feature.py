"""Localise a feature: where the model holds whether the subject is plural, and whether its verbs hang on that.

Sentences such as "The keys near the cabinet" come in both numbers. A linear reader a layer, with shuffled labels as its
control, says where the number can be read at the last token; taking that direction out of sentences that were not used
to find it says whether what follows uses it. Then the same for neurons, whose loss turns out to cost little.

    python examples/localise_feature.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

from serving import arguments, connected

from probewire.analysis.ablation import Localisation, ablate_feature, localise
from probewire.analysis.plots import layer_curves
from probewire.analysis.tasks import FittedTask, agreement, fit
from probewire.clients import Client, LogitDifference

OUTPUT = Path(__file__).parent / "output"
SENTENCES, NEURONS, CONTROLS = 48, 20, 6


def main() -> None:
    """Find the direction layer by layer, then test it, then test neurons."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        task = fit(agreement(), client, SENTENCES, model=args.model)
        found = read(client, task, "resid_post")
        print(found)

        # What the model does with it: the logits of plural verbs against those of singular ones.
        plural = next(e for e in task.examples if e.example.labels["number"] == "plural")
        verbs = LogitDifference(plural.correct, plural.wrong)
        layer = found.best_layer
        print(ablate_feature(client, found, layer, metric=verbs, n_controls=CONTROLS))

        neurons = read(client, task, "mlp_act", layers=[layer])
        print(ablate_feature(client, neurons, layer, neurons=NEURONS, metric=verbs, n_controls=CONTROLS))
        model = client.describe(args.model).id
    OUTPUT.mkdir(exist_ok=True)
    accuracy = found.accuracy
    layer_curves(
        {name: accuracy.sel(method=name).values for name in accuracy.axes["method"]},
        layers=accuracy.axes["layer"],
        chance=0.5,
        what="Whether the subject was plural, read at the last token",
        how=f"{model}, {len(found.test)} held-out sentences, past an attractor of either number",
        label="held-out accuracy",
        path=OUTPUT / "localise_feature.png",
    )
    print(f"\nplot: {OUTPUT / 'localise_feature.png'}")


def read(client: Client, task: FittedTask, site: str, layers: list[int] | None = None) -> Localisation:
    """Every sentence in both numbers, labelled 1 where the subject is plural; pairs stay on one side of the split."""
    prompts = [*task.clean.values(), *task.corrupt.values()]
    labels = [int(e.example.labels["number"] == "plural") for e in task.examples]
    return localise(
        client,
        [list(prompt.token_ids or ()) for prompt in prompts],
        [*labels, *(1 - label for label in labels)],
        site=site,
        layers=layers,
        groups=[*task.names, *task.names],
        model=task.model,
    )


if __name__ == "__main__":
    main()
