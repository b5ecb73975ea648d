"""Which tokens of a prompt to steer: formality by strategy, at equal total change, beside random directions.

python examples/steer_where.py [--url grpc://host:50051]
"""

from __future__ import annotations

from plots import save
from serving import arguments, connected

from probewire.analysis.datasets import load_set
from probewire.analysis.steering import choice, compare_positions, steering_vector
from probewire.clients import Client

SITE = "resid_post.14"
STRATEGIES = ("last", "last_3", "first", "all")


def main() -> None:
    """Make the vector from the training pairs, steer held-out beginnings, plot shift against KL."""
    asked = arguments(__doc__)
    with connected(asked.url) as client:
        compare(client, asked.model)


def compare(client: Client, model: str) -> None:
    """Print the table, and the sentences that a reader must be told."""
    data = load_set("formality").data
    pairs = data["pairs"]["train"]
    vector = steering_vector(
        client, [one["formal"] for one in pairs], [one["informal"] for one in pairs], SITE, model=model
    )
    listed = data["choices"]["held_out"][:6]
    choices = [choice(client, one["prompt"], one["formal"], one["informal"], model=model) for one in listed]
    prompts, metrics = [one.prompt for one in choices], [one.metric for one in choices]
    found = compare_positions(
        client,
        vector,
        SITE,
        prompts,
        metrics,
        strategies=STRATEGIES,
        strengths=(0.1, 0.25, 0.5),
        n_random=8,
        model=model,
    )
    print(found)
    save(found.figure(), "steer_where")


if __name__ == "__main__":
    main()
