"""A circuit checked at every level: reproduced, functional, robust, with its claims and side effects; the report is a page.

Few prompts, so that it takes minutes: the page says what was inconclusive for want of them. `probewire circuit qa` is the
same on a file, with exit codes.

    python examples/circuit_qa.py [--url grpc://host:50051]
"""

from __future__ import annotations

from plots import OUTPUT
from serving import arguments, connected

from probewire.analysis.circuits import Circuit, Claim, Origin, ablated, head_space, judge, rank_units
from probewire.analysis.reports.circuit import SafetyProbe, circuit_qa, qa_page, task_card
from probewire.analysis.tasks import fit, ioi
from probewire.clients import Client, LogitDifference

PROMPTS, HELD_OUT, HEADS = 4, 8, 15
TEMPLATE = {"template": "0"}


def main() -> None:
    """Find a circuit, check it, write the page."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        circuit = found(client, args.model)
        print(circuit)
        he, she = ((client.token(word, model=args.model),) for word in (" he", " she"))
        works = ["The nurse said that", "The doctor said that", "The farmer said that", "The teacher said that"]
        report = circuit_qa(
            client,
            circuit,
            task=ioi(),
            found_on=TEMPLATE,
            n=HELD_OUT,
            seeds=2,
            safety_sets={"he against she after names of work": SafetyProbe(works, LogitDifference(he, she))},
            model=args.model,
        )
    print(report)
    report.save(OUTPUT / "circuit_qa.json")
    qa_page(report, OUTPUT / "circuit_qa.html", circuit=circuit)
    print(f"exit code of level 2: {report.exit_code(2)}\npage: {OUTPUT / 'circuit_qa.html'}")


def found(client: Client, model: str) -> Circuit:
    """The best heads by AtP, with two claims of which one is false."""
    info, task = client.describe(model), fit(ioi().where(**TEMPLATE), client, PROMPTS, model=model)
    prompts, space = (task.clean, task.corrupt, task.metrics), head_space(info)
    scores = rank_units(client, *prompts, space, model=model)
    origin = Origin(model=info.id, model_hash=info.model_hash, task="ioi", metric="logit difference", method="AtP")
    bench = ablated(client, *prompts, space, progress=False, model=model)
    circuit = judge(bench, Circuit.of(space, space.top(scores, HEADS), scores, origin))
    best = circuit.units[0].name
    claims = (
        Claim(best, "the rest does not do without it", "necessity", 0.1),
        Claim(best, "looks one token back", "previous_token", 0.3),
    )
    return circuit.with_card(name="ioi-heads", category="syntax/names", task=task_card(task), claims=claims)


if __name__ == "__main__":
    main()
