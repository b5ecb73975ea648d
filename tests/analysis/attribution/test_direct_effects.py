"""Direct effects: complete, independent of the batch, and the same whether all gradients are read or the needed ones."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.direct_effects import direct_effects
from probewire.clients import Client, Coordinate, InvalidArgument, Logit

PROMPT = "abcdefgh"
TARGETS = [
    Coordinate("mlp_act.2", 8, 17),
    Logit(70, centred=True),
    Coordinate("mlp_act.0", 4, 3),
    Coordinate("mlp_act.1", 7, 90),
    Coordinate("mlp_gate.2", 5, 11),
]
SOURCES = [(0, 2, 5), (1, 4, 7), (0, 8, 95), (2, 8, 1), (1, 2, 7)]


def test_all_effects_on_a_target_sum_to_its_value(tiny: Client) -> None:
    ids = tiny.tokenize(PROMPT).token_ids
    found = direct_effects(tiny, ids, TARGETS, SOURCES, complete=True)
    run = tiny.run(PROMPT, capture=["mlp_act.*", "mlp_gate.2", "logits"])
    logits = run["logits"][-1]
    values = [
        run["mlp_act.2"][8, 17],
        logits[70] - logits.mean(),
        run["mlp_act.0"][4, 3],
        run["mlp_act.1"][7, 90],
        run["mlp_gate.2"][5, 11],
    ]
    assert found.values == pytest.approx(values, rel=1e-10)
    sums = found.embeddings.sum(axis=1) + found.neurons.sum(axis=1) + found.rest
    assert np.abs(sums / found.values - 1).max() <= 1e-12
    assert np.abs(found.rest).max() > 1e-3


def test_reading_only_the_needed_gradients_gives_the_same(tiny: Client) -> None:
    ids = tiny.tokenize(PROMPT).token_ids
    whole = direct_effects(tiny, ids, TARGETS, SOURCES, complete=True)
    for batch in (1, 2, 64):
        few = direct_effects(tiny, ids, TARGETS, SOURCES, batch=batch)
        assert np.abs(few.neurons - whole.neurons).max() <= 1e-6 * np.abs(whole.neurons).max()
        assert np.abs(few.embeddings - whole.embeddings).max() <= 1e-10
        assert np.isnan(few.rest).all()


def test_only_earlier_neurons_have_effects(tiny: Client) -> None:
    ids = tiny.tokenize(PROMPT).token_ids
    found = direct_effects(tiny, ids, TARGETS, SOURCES).neurons
    layers, positions = (np.array([source[i] for source in SOURCES]) for i in (0, 1))
    at = [(2, 8), (9, 8), (0, 4), (1, 7), (2, 5)]
    for row, (layer, position) in zip(found, at, strict=True):
        assert ((row != 0) == ((layers < layer) & (positions <= position))).all()


def test_bad_input(tiny: Client) -> None:
    for targets, batch, match in [([], 4, "no targets"), (TARGETS, 65, "batch must be in 1 … 64")]:
        with pytest.raises(InvalidArgument, match=match):
            direct_effects(tiny, [256, 64], targets, SOURCES, batch=batch)
