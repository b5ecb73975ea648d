"""Two circuits composed: who gets the drink, and whether a verb is plural; each task under each circuit and under both.

A composition is only worth what each task keeps of its faithfulness in the other's company, on prompts that no circuit was
found on, beside random circuits of the size of the whole. Then the whole becomes a variant that the server runs alone.

    python examples/compose_circuits.py [--url grpc://host:50051]
"""

from __future__ import annotations

from dataclasses import replace

from plots import OUTPUT
from serving import arguments, connected

from probewire.analysis.circuits import (
    Circuit,
    Origin,
    ablated,
    compose_circuits,
    head_space,
    install,
    interference,
    judge,
    rank_units,
    reuse,
)
from probewire.analysis.plots import heat_map
from probewire.analysis.tasks import FittedTask, Task, agreement, fit, ioi
from probewire.clients import Client

PROMPTS, HELD_OUT, HEADS = 4, 6, 15


def main() -> None:
    """Find two, measure their company, install the whole."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        members = {
            "ioi": found(client, ioi().where(template="0"), args.model),
            "agreement": found(client, agreement(), args.model),
        }
        company = interference(client, members, n_random=20, model=args.model)
        print(company)
        for check in company.checks:
            print(f"  {check}")
        for one in reuse({name: circuit for name, (circuit, _) in members.items()}):
            print(f"shared: Jaccard {one.jaccard:.2f}, by chance {one.expected:.2f} (p = {one.p_value:.3f})")
        both = compose_circuits([circuit for circuit, _ in members.values()]).with_card(name="names-and-number")
        reference = [*members["ioi"][1].clean.values(), *members["agreement"][1].clean.values()]
        alone = install(client, both, reference=reference, name="names-and-number", model=args.model)
        client.load_variant(alone, name="names-and-number", model=args.model)
        prompt = "When Mary and John went to the store, John gave a drink to"
        texts = [
            client.generate(prompt, variant=variant, max_new_tokens=4, model=args.model).text
            for variant in ((), "names-and-number")
        ]
        print(
            f"{prompt!r}\n  whole model    {texts[0]!r}\n  {len(both)} heads alone {texts[1]!r} (the others at their mean)"
        )
        client.unload_variant("names-and-number", model=args.model)
    heat_map(
        company.matrix,
        [*members, "both"],
        layers=[0, 1],
        what="Each task under each circuit",
        how=f"faithfulness on {HELD_OUT} held-out prompts; row 0: {next(iter(members))}, row 1: {list(members)[1]}",
        label="faithfulness",
        y_label="task",
        path=OUTPUT / "compose_circuits.png",
    )
    print(f"plot: {OUTPUT / 'compose_circuits.png'}")


def found(client: Client, task: Task, model: str) -> tuple[Circuit, FittedTask]:
    """The best heads by AtP on a few prompts, and other prompts to judge them by."""
    info, fitted = client.describe(model), fit(task, client, PROMPTS + HELD_OUT, model=model)
    some = fitted.batches(PROMPTS)[0]
    prompts, space = (some.clean, some.corrupt, some.metrics), head_space(info)
    scores = rank_units(client, *prompts, space, model=model)
    origin = Origin(
        model=info.id, model_hash=info.model_hash, task=fitted.name, metric="logit difference", method="AtP"
    )
    bench = ablated(client, *prompts, space, progress=False, model=model)
    circuit = judge(bench, Circuit.of(space, space.top(scores, HEADS), scores, origin))
    print(f"{fitted.name}: {circuit}")
    return circuit, replace(fitted, examples=fitted.examples[PROMPTS:])


if __name__ == "__main__":
    main()
