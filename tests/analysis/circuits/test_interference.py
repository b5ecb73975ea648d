"""Tasks under each other's circuits: every figure is the faithfulness that the parts give one by one."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.circuits import Circuit, ablated, faithfulness, head_space, interference, rank_units
from probewire.analysis.tasks import Example, FittedTask, Task, fit
from probewire.clients import Client, InvalidArgument


def letters(client: Client, name: str, n: int, seed: int) -> FittedTask:
    """A made-up task of a random model: it does something with these letters, whatever it is."""
    rng = np.random.default_rng(seed)
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    examples: list[Example] = []
    for _ in range(n):
        word = rng.choice(alphabet, 6, replace=False)
        clean, corrupt = "".join(word[:4]), "".join([word[0], word[5], *word[2:4]])
        examples.append(Example(clean, corrupt, (word[4],), (word[1],)))
    return fit(Task(name, tuple(examples)), client)


@pytest.fixture(scope="module")
def members(tiny: Client) -> dict[str, tuple[Circuit, FittedTask]]:
    space = head_space(tiny.describe())
    found: dict[str, tuple[Circuit, FittedTask]] = {}
    for seed, name in enumerate(("one", "two")):
        task = letters(tiny, name, 6, seed)
        scores = rank_units(tiny, task.clean, task.corrupt, task.metrics, space)
        found[name] = (Circuit.of(space, space.top(scores, 5, absolute=True), scores), task)
    return found


def test_every_entry_is_the_faithfulness_of_its_circuit(
    tiny: Client, members: dict[str, tuple[Circuit, FittedTask]]
) -> None:
    found = interference(tiny, members, n_random=6)
    (a, task), (b, _) = members.values()
    judge = ablated(tiny, task.clean, task.corrupt, task.metrics, a.space, progress=False)
    both = a.mask | b.mask
    assert found.matrix[0] == pytest.approx([faithfulness(judge, m) for m in (a.mask, b.mask, both)], abs=1e-9)
    assert found.harm[0, 1] == pytest.approx(faithfulness(judge, a.mask) - faithfulness(judge, both), abs=1e-9)
    assert found.harm.diagonal().tolist() == [0.0, 0.0]
    assert (found.sizes, found.size) == ((5, 5), int(both.sum()))
    assert found.random.shape == (2, 6)
    for row in found.figures:
        assert all(figure.low <= figure.value <= figure.high for figure in row)
    assert [check.name for check in found.checks[:2]] == ["one: kept in company", "one: better than random"]
    assert "all together" in repr(found)
    assert found.to_json()["verdict"] == found.verdict


def test_with_six_draws_nothing_is_better_than_random(
    tiny: Client, members: dict[str, tuple[Circuit, FittedTask]]
) -> None:
    found = interference(tiny, members, n_random=6)
    assert {check.verdict for check in found.checks if "random" in check.name} == {"fail"}, "p is at least 1/7"
    with pytest.raises(InvalidArgument, match="two circuits or more"):
        interference(tiny, dict(list(members.items())[:1]))


def test_a_ranking_is_attribution_patching_of_every_unit(
    tiny: Client, members: dict[str, tuple[Circuit, FittedTask]]
) -> None:
    from probewire.analysis.attribution import attribution_patching
    from probewire.analysis.circuits import JoinedSpace, make_space, neuron_space

    _, task = members["one"]
    info = tiny.describe()
    space = JoinedSpace((head_space(info), make_space(info, "mlp_out")))
    found = rank_units(tiny, task.clean, task.corrupt, task.metrics, space)
    arguments = (tiny, task.clean, task.corrupt)
    z = attribution_patching(*arguments, "z", task.metrics, heads="all", positions="all", direction="noise").importance
    mlp = attribution_patching(*arguments, "mlp_out", task.metrics, positions="all", direction="noise").importance
    assert found == pytest.approx(np.concatenate([z.values.ravel(), mlp.values.ravel()]), abs=1e-12)
    n = task.lengths[0]
    placed = rank_units(tiny, task.clean, task.corrupt, task.metrics, neuron_space(info, n), rank="relp")
    assert placed.shape == (info.n_layers, n, 96)
