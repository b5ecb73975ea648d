"""A fact changed, and what that cost: the capital of France, with what was asked for and what was not.

The edit is a change of rank 1 of one matrix, found on the client; the model on the server stays as it is, and the change goes
along with each request.

    python examples/edit_fact.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

from serving import arguments, connected

from probewire.analysis.editing import Answers, capital_facts, edit_facts, in_context, measure_facts

OUTPUT = Path(__file__).parent / "output"
PROMPTS = ("The capital of France is", "The capital of Austria is", "Rome is the capital of")


def main() -> None:
    """One fact, two ways to change it and one to say it."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        [fact] = [one for one in capital_facts() if one.subject == "France"]
        base = Answers(client, model=args.model)
        exact = edit_facts(client, fact, layers=4, model=args.model)
        rome = edit_facts(client, fact, method="rome", layers=4, values=exact.values, model=args.model)
        print(f"{fact}\n{exact}\n")
        for name, edited in {"neighbours' keys preserved": exact, "ROME": rome}.items():
            found = measure_facts(client, fact, hooks=edited.hooks, base=base, n_generated=0, model=args.model)
            print(f"{name}: {found}\n")
        said = measure_facts(client, fact, context=in_context(fact), base=base, n_generated=0, model=args.model)
        print(f"said in the prompt: {said}\n")
        for prompt in PROMPTS:
            texts = [
                client.generate(prompt, hooks=hooks, max_new_tokens=12, model=args.model).text
                for hooks in ([], exact.hooks)
            ]
            print(f"{prompt!r}\n  as it is  {texts[0]!r}\n  edited    {texts[1]!r}")
        folder = OUTPUT / "paris-is-rome"
        if not folder.exists():
            print(f"saved: {exact.variant.named('paris-is-rome').save(folder)}")


if __name__ == "__main__":
    main()
