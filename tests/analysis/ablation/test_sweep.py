"""Each way to ablate, through a sweep, against runs whose replacement values numpy worked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from probewire.analysis.ablation import (
    Ablation,
    MeanAblation,
    NoiseAblation,
    Part,
    ResampleAblation,
    ZeroAblation,
    ablation_sweep,
    measure,
    measure_plans,
    parts_of,
    tokenized,
)
from probewire.analysis.tasks import Example, FittedTask, Task, fit
from probewire.clients import Client, Hook, Inline, Input, Noise, Replace, Tensor, Where
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import LogProb
from tests.analysis.ablation.planted import brute_force, texts

SITES = ("z.*", "mlp_act.*", "attn_out.*")
REFERENCE = [*texts(5, "x", seed=7), *texts(4, "w", seed=8)]
"""As long as the task's own prompts."""
UNEVEN = ["abc", "abcdefgh", "the quick brown"]
Values = Callable[[Client, str, Input], np.ndarray]


def rows(client: Client, prompt: object, site: str) -> np.ndarray:
    """[pos, …] of one prompt, float64."""
    return client.run(prompt, capture=site)[site].astype(np.float64)


def replaced(part: Part, whole: np.ndarray, positions: Sequence[int] | None) -> Hook:
    """Every row of the site sent inline: the part's are new, the rest as given."""
    where = Where() if positions is None else Where(positions=tuple(positions))
    chosen = whole if positions is None else whole[list(positions)]
    return Hook(part.site, Replace(Inline(Tensor.of(chosen.astype(np.float32)))), where=where)


def check(
    client: Client,
    task: FittedTask,
    ablation: Ablation,
    value: Values,
    over: str,
    indices: Sequence[int] | None,
    positions: Sequence[int] | None = None,
) -> None:
    found = ablation_sweep(
        client, task, over, ablation, layers=[0, 2], indices=indices, positions=positions, progress=False
    )
    assert found.axes["ablation"] == (ablation.kind,)
    assert found.axes["input"] == task.names
    parts = parts_of(client.describe(), over, layers=[0, 2], indices=indices).parts
    for row, example in enumerate(task.examples):
        prompt = task.clean[example.name]
        plans: list[list[Hook]] = [[]]
        for part in parts:
            # The hooks see a forward that is as it was up to the site, so its own rows are those of a plain run.
            whole, new = rows(client, prompt, part.site), value(client, part.site, prompt)
            mask = np.zeros_like(whole, dtype=bool)
            if part.heads is not None:
                mask[..., list(part.heads), :] = True
            else:
                mask[..., slice(None) if part.units is None else list(part.units)] = True
            plans.append([replaced(part, np.where(mask, np.broadcast_to(new, whole.shape), whole), positions)])
        expected = brute_force(client, {example.name: prompt}, {example.name: example.metric}, plans)[0]
        np.testing.assert_allclose(found.values[0, row].ravel(), expected[1:] - expected[0], rtol=1e-3, atol=2e-4)


OVER = [("heads", None), ("neurons", [3, 17, 40]), ("attn_out", None)]


@pytest.mark.parametrize(("over", "indices"), OVER)
@pytest.mark.parametrize("positions", [None, [-1], [2, 5]])
def test_zero(
    client: Client, task: FittedTask, over: str, indices: list[int] | None, positions: list[int] | None
) -> None:
    check(client, task.batches(3)[0], ZeroAblation(), lambda *_: np.zeros(1), over, indices, positions)


@pytest.mark.parametrize(("over", "indices"), OVER)
def test_mean(client: Client, task: FittedTask, over: str, indices: list[int] | None) -> None:
    """Over prompts of several lengths every row counts the same."""

    def value(client: Client, site: str, _: Input) -> np.ndarray:
        return np.concatenate([rows(client, text, site) for text in UNEVEN]).mean(axis=0)

    check(client, task.batches(3)[0], MeanAblation(measure(client, UNEVEN, SITES)), value, over, indices)


@pytest.mark.parametrize(("over", "indices"), OVER)
@pytest.mark.parametrize("positions", [None, [2, 5]])
def test_mean_by_position(
    client: Client, task: FittedTask, over: str, indices: list[int] | None, positions: list[int] | None
) -> None:
    def value(client: Client, site: str, _: Input) -> np.ndarray:
        return np.stack([rows(client, text, site) for text in REFERENCE]).mean(axis=0)

    ablation = MeanAblation(measure(client, REFERENCE, SITES, positionwise=True))
    check(client, task.batches(2)[0], ablation, value, over, indices, positions)


@pytest.mark.parametrize(("over", "indices"), OVER)
def test_resample(client: Client, task: FittedTask, over: str, indices: list[int] | None) -> None:
    pool = tokenized(client, REFERENCE)
    ablation = ResampleAblation(pool, seed=3)
    drawn = {item.name.removesuffix("/resampled"): item.token_ids for item in ablation.sources(task.clean)}
    assert set(drawn.values()) <= {item.token_ids for item in pool.values()}
    assert len(set(drawn.values())) > 1
    by_prompt = {task.clean[name].token_ids: ids for name, ids in drawn.items()}

    def value(client: Client, site: str, prompt: Input) -> np.ndarray:
        return rows(client, list(by_prompt[prompt.token_ids] or ()), site)

    check(client, task.batches(3)[0], ablation, value, over, indices)


@pytest.mark.parametrize("over", ["heads", "neurons", "mlp_out"])
def test_noise(client: Client, task: FittedTask, over: str) -> None:
    """`scale` deviations of the part's own, which numpy works out from all rows."""
    some, indices = task.batches(2)[0], None if over == "mlp_out" else [1, 3]
    sites = (*SITES, "mlp_out.*")
    ablation = NoiseAblation(2.0, measure(client, UNEVEN, sites), seed=5)
    assert ablation.kind == "noise 2σ, seed 5"
    found = ablation_sweep(client, some, over, ablation, layers=[1], indices=indices, progress=False)
    plans: list[list[Hook]] = [[]]
    for part in parts_of(client.describe(), over, layers=[1], indices=indices).parts:
        own = part.of(np.concatenate([rows(client, text, part.site) for text in UNEVEN]).std(axis=0))
        std = 2.0 * float(np.sqrt((own**2).mean()))
        plans.append([Hook(part.site, Noise(std, 5, units=part.units, heads=part.heads))])
    metrics = {example.name: example.metric for example in some.examples}
    expected = brute_force(client, some.clean, metrics, plans)
    np.testing.assert_allclose(
        found.values[0].reshape(len(some), -1), expected[:, 1:] - expected[:, :1], rtol=1e-3, atol=2e-4
    )
    assert np.abs(found.values).max() > 1e-3


def test_several_kinds_in_one_array(client: Client, task: FittedTask) -> None:
    kinds = [ZeroAblation(), MeanAblation(measure(client, REFERENCE, "z.*")), NoiseAblation(0.5)]
    found = ablation_sweep(client, task, "heads", kinds, progress=False)
    assert found.axes == {
        "ablation": ("zero", "mean", "noise 0.5"),
        "input": task.names,
        "layer": (0, 1, 2),
        "head": (0, 1, 2, 3),
    }
    alone = ablation_sweep(client, task, "heads", kinds[1], progress=False)
    np.testing.assert_allclose(found.sel(ablation="mean").values, alone.values[0], atol=1e-6)
    with pytest.raises(InvalidArgument, match=r"of distinct kinds, at least one; got \['zero', 'zero'\]"):
        ablation_sweep(client, task, "heads", [ZeroAblation(), ZeroAblation()], progress=False)


def test_a_metric_of_ones_own_and_the_corrupt_prompts(client: Client, task: FittedTask) -> None:
    token = client.token("t")
    found = ablation_sweep(
        client, task, "mlp_act", ZeroAblation(), layers=[2], metric=LogProb(token), form="corrupt", progress=False
    )
    for row, prompt in enumerate(task.corrupt.values()):
        logprobs: list[float] = []
        for plan in ([], ZeroAblation().hooks(Part("mlp_act.2"), {})):
            logits = client.run(prompt, hooks=plan, capture="logits")["logits"][-1].astype(np.float64)
            logprobs.append(logits[token] - np.log(np.exp(logits).sum()))
        assert found.values[0, row, 0] == pytest.approx(logprobs[1] - logprobs[0], rel=1e-4, abs=1e-5)


def test_more_examples_than_a_request_takes(client: Client) -> None:
    examples = tuple(Example(f"{i:02} or xyz", f"{i:02} or xyw", ("t",), ("u",)) for i in range(70))
    many = fit(Task("many", examples), client)
    found = measure_plans(client, many, [[], ZeroAblation().hooks(Part("z.1"), {})])
    assert found.shape == (70, 2)
    for name in ("0", "33", "69"):
        example = many.examples[int(name)]
        plans = [[], ZeroAblation().hooks(Part("z.1"), {})]
        expected = brute_force(client, {name: many.clean[name]}, {name: example.metric}, plans)
        np.testing.assert_allclose(found[int(name)], expected[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_put_in_is_refused(client: Client, task: FittedTask) -> None:
    with pytest.raises(InvalidArgument, match=r"the reference holds no z.1; measure it too"):
        MeanAblation(measure(client, UNEVEN, "z.0")).hooks(Part("z.1"), task.clean)
    with pytest.raises(InvalidArgument, match=r"a mean at each position needs prompts of one length, got \[4, 9, 16\]"):
        measure(client, UNEVEN, "z.0", positionwise=True)
    by_position = MeanAblation(measure(client, ["abc", "abd"], "z.0", positionwise=True))
    with pytest.raises(InvalidArgument, match=r"means for each of 4 positions, but prompts have \[11\] tokens"):
        by_position.hooks(Part("z.0"), task.clean)
    with pytest.raises(
        InvalidArgument, match=r"has 11 tokens, and the pool of 3 prompts holds no other of that length"
    ):
        ResampleAblation(tokenized(client, UNEVEN)).sources(task.clean)
    with pytest.raises(InvalidArgument, match="has rows as wide as its prompt is long"):
        measure(client, UNEVEN, "attn_probs.0")


def test_an_input_never_draws_itself(client: Client, task: FittedTask) -> None:
    pool = dict(list(task.clean.items())[:2])
    drawn = ResampleAblation(pool).sources(pool)
    assert [item.token_ids for item in drawn] == [item.token_ids for item in reversed(pool.values())]
    with pytest.raises(InvalidArgument, match="holds no other of that length"):
        ResampleAblation(dict(list(pool.items())[:1])).sources(dict(list(pool.items())[:1]))
