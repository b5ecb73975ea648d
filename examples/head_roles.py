"""What attention heads do: previous-token, duplicate-token, induction and name-mover heads.

The first three show on random tokens repeated once, where nothing but their order can be known. Name movers show on
sentences that must end in a name: they attend from the end to that name and write it out.

    python examples/head_roles.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

from serving import arguments, connected

from probewire.analysis.circuits import head_roles, name_movers
from probewire.analysis.plots import head_grid
from probewire.analysis.tasks import fit, ioi

OUTPUT = Path(__file__).parent / "output"
SENTENCES = 4
ROLES = {
    "induction": ("Heads that look for what came next last time", "attention to the token after the earlier copy"),
    "previous_token": ("Heads that look one token back", "attention to the token before"),
    "duplicate_token": ("Heads that find the earlier copy", "attention to the same token before"),
}


def main() -> None:
    """The roles on random tokens, then name movers on real sentences."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        model = client.describe(args.model).id
        roles = head_roles(client, length=16, n_prompts=2, model=args.model)
        for role, (what, label) in ROLES.items():
            name = "head_roles" if role == "induction" else f"head_roles_{role}"
            how = f"{model}, random tokens repeated once, mean over 2 prompts"
            head_grid(getattr(roles, role), what=what, how=how, label=label, path=OUTPUT / f"{name}.png")
            print(f"{role.replace('_', '-'):<16} " + listed(roles.top(role)))

        task = fit(ioi(), client, SENTENCES, model=args.model)
        names = [positions[-1] for positions in task.positions("io").values()]
        movers = name_movers(client, list(task.clean.values()), task.metrics, names, model=args.model)
        print(f"{'name-mover':<16} " + listed(movers.top()) + "  (logits)")
    head_grid(
        movers.score,
        what="Heads that move the name to the end",
        how=f"{model}, {len(names)} sentences: attention to the name × what the head would write of it",
        label="direct effect on the logit difference",
        path=OUTPUT / "head_roles_name_movers.png",
    )
    for name in ("", "_previous_token", "_duplicate_token", "_name_movers"):
        print(f"plot: {OUTPUT / f'head_roles{name}.png'}")


def listed(top: list[tuple[int, int, float]]) -> str:
    """The strongest heads on one line."""
    return "  ".join(f"{layer}.{head} {score:+.2f}" for layer, head, score in top)


if __name__ == "__main__":
    main()
