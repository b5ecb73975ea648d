"""A steering vector from the difference of means of two sets of prompts, and its dose response.

python examples/steering_vector.py [--url grpc://host:50051]
"""

from __future__ import annotations

import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.plots.style import BLUE, GREY, ORANGE, new, title
from probewire.clients import Client, Gather, capture, steer

GOOD = [
    "I love this place, it makes me happy.",
    "What a wonderful and delightful surprise!",
    "The food was delicious and everyone smiled.",
    "She was thrilled with the beautiful gift.",
    "A brilliant film, full of warmth and joy.",
    "We had the best day of our lives.",
]
BAD = [
    "I hate this place, it makes me sick.",
    "What a horrible and disgusting mess!",
    "The food was rotten and everyone complained.",
    "She was furious about the ugly gift.",
    "A terrible film, full of hatred and pain.",
    "We had the worst day of our lives.",
]
QUESTION = [{"role": "user", "content": "How was the film last night?"}]
OPENINGS = ["I think this film is", "Overall the hotel was", "My opinion of the meal: it was", "The new phone is"]
WORDS = [(" great", " terrible"), (" good", " bad"), (" wonderful", " awful")]
LAYER = 15
ALPHAS = [-8, -6, -4, -2, -1, 0, 1, 2, 4, 6, 8]
"""In tenths of the site's typical norm."""


def main() -> None:
    """Make the vector, steer with every dose, plot."""
    args = arguments(__doc__)
    site = f"resid_post.{LAYER}"
    with connected(args.url) as client:
        vector = difference_of_means(client, args.model, site)
        texts, ids = generations(client, args.model, site, vector)
        for alpha, text in texts.items():
            print(f"{alpha:+d}  {text.strip()[:110]!r}")
        lean = leaning(client, args.model, site, vector)
        fluency = own_logprob(client, args.model, ids)
        model = client.describe(args.model).id
    plot(lean, fluency, site, model)


def difference_of_means(client: Client, model: str, site: str) -> np.ndarray:
    """[d_model]: mean row of GOOD minus mean row of BAD, scaled to a tenth of a row's typical norm.

    Each prompt's first token is left out: it has a norm of its own, which says nothing of the prompt.
    """
    run = client.run(GOOD + BAD, capture=capture(site, spans=[(1, None)]), model=model)
    rows = [item[site].astype(np.float32) for item in run.inputs.values()]
    good, bad = np.concatenate(rows[: len(GOOD)]), np.concatenate(rows[len(GOOD) :])
    direction = good.mean(axis=0) - bad.mean(axis=0)
    typical = np.linalg.norm(np.concatenate([good, bad]), axis=1).mean()
    return direction / np.linalg.norm(direction) * typical / 10


def generations(
    client: Client, model: str, site: str, vector: np.ndarray
) -> tuple[dict[int, str], dict[int, tuple[tuple[int, ...], int]]]:
    """Every dose in one request, an input each: the texts, and (token ids, prompt length) to score them."""
    prompts = {str(alpha): QUESTION for alpha in ALPHAS}
    hooks = [steer(site, vector, alpha, inputs=str(alpha)) for alpha in ALPHAS]
    result = client.generate(prompts, hooks=hooks, model=model, max_new_tokens=32)
    items = {alpha: result.inputs[str(alpha)] for alpha in ALPHAS}
    return (
        {alpha: item.text for alpha, item in items.items()},
        {alpha: (item.token_ids, len(item.prompt_ids)) for alpha, item in items.items()},
    )


def leaning(client: Client, model: str, site: str, vector: np.ndarray) -> np.ndarray:
    """[alpha, opening]: logit of good words minus that of bad words, after each opening."""
    pairs = [tuple(client.tokenize(word, model=model).token_ids[-1] for word in pair) for pair in WORDS]
    read = capture("logits", reduce=Gather(tuple(token for pair in pairs for token in pair)), positions=-1)
    out: list[list[float]] = []
    for alpha in ALPHAS:
        run = client.run(OPENINGS, hooks=steer(site, vector, alpha), capture=read, model=model)
        logits = np.stack([item["logits"][0] for item in run.inputs.values()]).reshape(len(OPENINGS), -1, 2)
        out.append((logits[..., 0] - logits[..., 1]).mean(axis=1))
    return np.array(out)


def own_logprob(client: Client, model: str, ids: dict[int, tuple[tuple[int, ...], int]]) -> np.ndarray:
    """[alpha]: mean log-probability of the steered text under the model as it is, per token."""
    inputs = {str(alpha): list(tokens) for alpha, (tokens, _) in ids.items()}
    run = client.run(inputs, capture=capture("logits", reduce="next_logprob"), model=model)
    return np.array([run.inputs[str(a)]["logits"][n_prompt - 1 :].mean() for a, (_, n_prompt) in ids.items()])


def plot(lean: np.ndarray, fluency: np.ndarray, site: str, model: str) -> None:
    """Two curves over the dose: what was wanted, and what it costs."""
    figure, (top, bottom) = new(7, 5.4, nrows=2, sharex=True, height_ratios=[3, 2])
    top.plot(ALPHAS, lean, color=GREY, linewidth=0.8, alpha=0.6)
    top.plot(ALPHAS, lean.mean(axis=1), color=BLUE, marker="o")
    top.axhline(0, color=GREY, linewidth=0.8)
    top.set_ylabel("logit(good) − logit(bad)")
    bottom.plot(ALPHAS, fluency, color=ORANGE, marker="o")
    bottom.set_ylabel("log-probability\na token")
    bottom.set_xlabel("dose: alpha, in tenths of the site's typical norm")
    for axes in (top, bottom):
        axes.grid(axis="y")
        axes.axvline(0, color=GREY, linewidth=0.8)
    title(
        top,
        "Small doses turn the answer; large ones break the text",
        f"difference of means added at {site} of {model}; thin: each of {len(OPENINGS)} openings",
    )
    bottom.set_title("the steered answers, read by the model unsteered", color=GREY, fontsize=8.5)
    save(figure, "steering_vector")


if __name__ == "__main__":
    main()
