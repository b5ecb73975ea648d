"""Steering that stands: a variant of hooks with a condition, which steers formal requests alone, whoever sends them.

The condition is fitted on half of the examples and judged on the other. Loaded, it needs no hooks in a request: clients of
OpenAI's dialect name it in the model. Where the condition does not hold, the answer is the base's to the token.

    python examples/standing_steering.py [--url grpc://host:50051]
"""

from __future__ import annotations

import numpy as np
from serving import arguments, connected

from probewire.analysis.datasets import load_set
from probewire.analysis.editing.safety import gate
from probewire.analysis.steering import fit_condition, steering_vector
from probewire.clients import steer

READ, STEERED, STRENGTH = "resid_post.6:10", "resid_post.14", 0.4
"""Strength in mean norms of the stream there."""
NAME = "formal-turned"


def main() -> None:
    """Fit a vector and a condition, load the variant, ask it both kinds of thing, unload it."""
    args = arguments(__doc__)
    data = load_set("formality").data
    train, held = data["pairs"]["train"], data["pairs"]["held_out"]
    formal, informal = ([one[kind] for one in train] for kind in ("formal", "informal"))
    with connected(args.url) as client:
        vector = steering_vector(client, informal, formal, STEERED, model=args.model)
        condition = fit_condition(client, formal, informal, sites=READ, n_shuffles=4, model=args.model)
        print(f"vector: {vector}\ncondition: {condition}")
        rows = client.run(formal[:8], capture=[STEERED], model=args.model).inputs.values()
        norm = float(np.mean([np.linalg.norm(item[STEERED][1:], axis=1).mean() for item in rows]))
        hooks = [steer(STEERED, vector.direction, STRENGTH * norm)]
        standing = gate(client, hooks, condition, name=NAME, model=args.model)
        loaded = client.load_variant(standing, name=NAME, model=args.model)
        print(
            f"loaded {loaded.name} {loaded.version}: model={client.describe(args.model).id}:{NAME} for OpenAI's clients"
        )
        for kind in ("formal", "informal"):
            same = 0
            for prompt in (one[kind] for one in held[:6]):
                plain, turned = (
                    client.generate(prompt, variant=variant, max_new_tokens=12, model=args.model)
                    for variant in ((), NAME)
                )
                same += plain.token_ids == turned.token_ids
                if prompt == held[0][kind]:
                    print(f"{kind}: {prompt!r}\n  base    {plain.text!r}\n  {NAME}  {turned.text!r}")
            print(f"{kind}: {same} of {min(6, len(held))} answers are the base's to the token")
        client.unload_variant(NAME, model=args.model)


if __name__ == "__main__":
    main()
