"""The value: deltas by hand, sums, hashes, folders."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from probewire.protos.edits import Add, Clamp, Constant, FromInput, LowRank, Replace, Scale, Stored
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound
from probewire.protos.hooks import Capture, Hook, Where
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.variant import Variant

RNG = np.random.default_rng(5)


def delta(d_in: int = 6, d_out: int = 4, rank: int = 2, *, bias: bool = False) -> Delta:
    """A random one."""
    return Delta(
        RNG.normal(size=(d_in, rank)), RNG.normal(size=(rank, d_out)), RNG.normal(size=d_out) if bias else None
    )


def variant() -> Variant:
    """Two weights and a hook."""
    deltas = {"w_down.1": delta(bias=True), "w_o.0": delta(4, 4, 1)}
    hook = Hook("resid_post.1", Add(np.float32([1, 2, 3, 4]), alpha=2.0), where=Where(phase="generated"))
    return Variant(deltas, Plan((hook,)), Manifest(name="made-up", base=Base(id="tiny", model_hash="ab" * 32)))


class TestDelta:
    def test_by_hand(self) -> None:
        one = Delta([[1, 0], [2, 1]], [[3, 0, 1], [0, 5, 0]], [1, 1, 1])
        assert one.dense().tolist() == [[3, 0, 1], [6, 5, 2]]
        assert (one.d_in, one.d_out, one.rank, one.n_bytes) == (2, 3, 2, 4 * (4 + 6 + 3))
        assert one.scaled(-2).dense().tolist() == [[-6, 0, -2], [-12, -10, -4]]
        assert np.asarray(one.scaled(-2).bias).tolist() == [-2, -2, -2]

    def test_sum_is_the_sum_of_the_products(self) -> None:
        one, two = delta(bias=True), delta(rank=3)
        both = one + two
        assert both.rank == 5
        np.testing.assert_allclose(both.dense(), one.dense() + two.dense(), atol=1e-6)
        np.testing.assert_array_equal(both.bias, one.bias)
        np.testing.assert_allclose(np.asarray((one + one).bias), 2 * np.asarray(one.bias), atol=1e-7)
        with pytest.raises(InvalidArgument, match="not of one weight"):
            _ = one + delta(5, 4)

    def test_norm_and_singular_values_are_the_dense_ones(self) -> None:
        one = delta(7, 5, 3)
        dense = one.a.astype(np.float64) @ one.b.astype(np.float64)
        assert one.norm() == pytest.approx(np.linalg.norm(dense), rel=1e-12)
        np.testing.assert_allclose(one.singular_values()[:3], np.linalg.svd(dense, compute_uv=False)[:3], rtol=1e-10)

    def test_compressed_is_the_best_of_its_rank(self) -> None:
        one = delta(8, 6, 5)
        u, s, vt = np.linalg.svd(one.dense().astype(np.float64))
        np.testing.assert_allclose(one.compressed(rank=2).dense(), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
        kept = np.cumsum(s**2) / (s**2).sum()
        for energy in (0.5, 0.9, 0.99, 1.0):
            assert one.compressed(energy=energy).rank == min(int((kept < energy * (1 - 1e-6)).sum()) + 1, 5)
        np.testing.assert_allclose((one + one.scaled(-0.5)).compressed(energy=1).dense(), one.dense() / 2, atol=1e-5)
        assert (one + one).compressed(energy=1).rank == 5  # half of the ten are nothing
        assert (one + one.scaled(-1)).compressed(rank=3).norm() == pytest.approx(0, abs=1e-5)
        # factors wider than the matrix
        wide = delta(3, 2, 9)
        np.testing.assert_allclose(wide.compressed(energy=1).dense(), wide.dense(), atol=1e-5)

    @pytest.mark.parametrize("how", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.1}])
    def test_compression_is_asked_for_one_way(self, how: dict[str, float]) -> None:
        with pytest.raises(InvalidArgument):
            delta().compressed(**how)

    @pytest.mark.parametrize(
        ("a", "b", "bias", "why"),
        [
            ([[1.0]], [[1.0], [2.0]], None, "with one r"),
            ([1.0], [[1.0]], None, "needs 2 axes"),
            (np.zeros((0, 1)), [[1.0]], None, "none of them empty"),
            ([[np.nan]], [[1.0]], None, "NaN or infinite"),
            ([[1e39]], [[1.0]], None, "beyond float32"),
            ([[1.0]], [[1.0]], [1.0, 2.0], "2 numbers"),
            ([["x"]], [[1.0]], None, "give numbers"),
            ([[1.0], [1.0, 2.0]], [[1.0]], None, "no array of numbers"),
            ([[1j]], [[1.0]], None, "give numbers"),
        ],
    )
    def test_what_is_none(self, a: object, b: object, bias: object, why: str) -> None:
        with pytest.raises(InvalidArgument, match=why):
            Delta(a, b, bias)

    def test_holds_a_copy_that_nobody_changes(self) -> None:
        a = np.ones((2, 1), np.float32)
        one = Delta(a, [[1.0]])
        a[:] = 5
        assert one.a.tolist() == [[1], [1]]
        with pytest.raises(ValueError, match="read-only"):
            one.a[:] = 2
        half = Delta(np.ones((2, 1), ml_dtypes.bfloat16), np.ones((1, 2), np.float64))
        assert half.a.dtype == half.b.dtype == np.float32

    def test_scaling_past_float32_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="beyond float32"):
            Delta([[1.0]], [[1e38]]).scaled(100)
        with pytest.raises(InvalidArgument):
            Delta([[1.0]], [[1.0]]).scaled(float("nan"))


class TestVariant:
    def test_hash_is_of_content_alone(self) -> None:
        one = variant()
        assert replace(one, manifest=replace(one.manifest, name="other", description="x")).hash == one.hash
        assert Variant(dict(reversed(list(one.deltas.items()))), one.plan, one.manifest).hash == one.hash
        other_base = replace(one.manifest, base=Base(model_hash="cd" * 32))
        bias = Delta(one.deltas["w_o.0"].a, one.deltas["w_o.0"].b, np.ones(4))
        moved = {"w_down.1": one.deltas["w_down.1"], "w_o.1": one.deltas["w_o.0"]}
        others = [
            replace(one, manifest=other_base),
            Variant({**one.deltas, "w_o.0": bias}, one.plan, one.manifest),
            Variant(moved, one.plan, one.manifest),
            Variant(one.deltas, Plan(), one.manifest),
            Variant(
                one.deltas,
                Plan((replace(one.plan.hooks[0], edit=Add(np.float32([1, 2, 3, 5]), alpha=2.0)),)),
                one.manifest,
            ),
        ]
        assert len({one.hash, *(other.hash for other in others)}) == 6

    def test_hash_written_out(self) -> None:
        """What anybody can compute: the JSON is part of the format."""
        hook = Hook("resid_post.1", Add(np.float32([1, 2])), where=Where(phase="generated"))
        one = Variant({"w_o.0": Delta([[1.0]], [[2.0]])}, Plan((hook,)), Manifest(base=Base(model_hash="00" * 32)))
        a, b = (sha256(struct.pack("<f", number)).hexdigest() for number in (1, 2))
        vector = sha256(struct.pack("<2f", 1, 2)).hexdigest()
        factor = '{"sha256":"HASH","shape":[1,1]}'
        factors = f'"a":{factor.replace("HASH", a)},"b":{factor.replace("HASH", b)}'
        tensor = f'"dtype":"float32","kind":"tensor","sha256":"{vector}","shape":[2]'
        edit = f'{{"kind":"add","vector":{{{tensor}}}}}'
        where = '{"kind":"where","phase":"generated"}'
        hooks = f'[{{"edit":{edit},"kind":"hook","site":"resid_post.1","where":{where}}}]'
        text = f'{{"base":"{"00" * 32}","deltas":{{"w_o.0":{{{factors}}}}},"plan":{hooks}}}'
        assert one.hash == sha256(text.encode()).hexdigest()

    def test_folder_gives_it_back(self, tmp_path: Path) -> None:
        one = variant()
        assert one.save(tmp_path / "v") == tmp_path / "v"
        again = Variant.load(tmp_path / "v")
        assert again == one
        assert dict(again.deltas) == dict(one.deltas)
        assert again.plan == one.plan
        with pytest.raises(FailedPrecondition, match="there already"):
            one.save(tmp_path / "v")
        with pytest.raises(NotFound):
            Variant.load(tmp_path / "w")
        hooks = Variant(plan=one.plan)
        assert Variant.load(hooks.save(tmp_path / "hooks")) == hooks

    def test_changed_folder_is_refused(self, tmp_path: Path) -> None:
        folder = variant().save(tmp_path / "v")
        told = json.loads((folder / "variant.json").read_text())
        (folder / "variant.json").write_text(json.dumps(told | {"base": {**told["base"], "model_hash": "cd" * 32}}))
        with pytest.raises(InvalidArgument, match="damaged or was changed by hand"):
            Variant.load(folder)
        for change in ({"format": "x"}, {"version": 2}, {"hash": 3}, {"extra": 1}, {"tags": "x"}, {"base": {"id": 3}}):
            (folder / "variant.json").write_text(json.dumps(told | change))
            with pytest.raises(InvalidArgument):
                Variant.load(folder)

    def test_sum_keeps_both(self) -> None:
        one, two = variant(), variant()
        both = one + two
        np.testing.assert_allclose(both.dense("w_o.0"), one.dense("w_o.0") + two.dense("w_o.0"), atol=1e-6)
        assert len(both.plan.hooks) == 2
        assert [parent["hash"] for parent in both.manifest.made_of] == [one.hash, two.hash]
        assert both.manifest.base == one.manifest.base
        free = Variant({"w_q.0": delta()})
        assert (free + one).manifest.base == (one + free).manifest.base == one.manifest.base
        assert set((free + one).deltas) == {"w_q.0", "w_down.1", "w_o.0"}
        with pytest.raises(FailedPrecondition, match="only variants of one model"):
            _ = one + Variant({"w_q.0": delta()}, manifest=Manifest(base=Base(model_hash="cd" * 32)))
        with pytest.raises(InvalidArgument, match=r"at w_o\.0: deltas of"):
            _ = one + Variant({"w_o.0": delta(5, 4)})

    def test_sum_of_plans_with_one_id(self) -> None:
        one = Variant(plan=Plan((Hook("resid_post.1", Scale(2.0), id="x"),)))
        assert [hook.id for hook in (one + one).plan.hooks] == ["x", None]

    def test_scaled(self) -> None:
        hooks = (
            Hook("resid_post.1", Add(np.float32([1, 2, 3, 4]), alpha=2.0)),
            Hook("mlp_act.1", Scale(0.0)),
            Hook("mlp_out.1", LowRank(np.ones((4, 1)), np.ones((1, 4)), alpha=3.0)),
        )
        half = Variant({"w_o.0": delta()}, Plan(hooks)).scaled(0.5)
        add, scale, low_rank = (hook.edit for hook in half.plan.hooks)
        assert isinstance(add, Add)
        assert isinstance(scale, Scale)
        assert isinstance(low_rank, LowRank)
        assert (add.alpha, scale.factor, low_rank.alpha) == (1, 0.5, 1.5)
        fixed = Variant(plan=Plan((Hook("resid_post.1", Clamp(max=1.0)),)))
        assert fixed.scaled(1).plan == fixed.plan
        with pytest.raises(InvalidArgument, match=r"Clamp\) has no strength"):
            fixed.scaled(0.5)

    def test_only_and_dense(self) -> None:
        one = variant()
        assert set(one.only("w_down.*").deltas) == {"w_down.1"}
        assert not one.only("w_*").plan.hooks
        with pytest.raises(InvalidArgument, match=r"there are w_down\.1, w_o\.0"):
            one.only("w_q.*")
        with pytest.raises(InvalidArgument):
            one.dense("w_*")

    def test_compressed_keeps_biases_and_hooks(self) -> None:
        one = variant()
        small = one.compressed(rank=1)
        assert {delta.rank for delta in small.deltas.values()} == {1}
        assert small.plan == one.plan
        np.testing.assert_array_equal(small.deltas["w_down.1"].bias, one.deltas["w_down.1"].bias)

    @pytest.mark.parametrize(
        "name",
        ["w_q", "w_q.-1", "w_q.01", "w_norm.3", "w_embed.0", "module:", "module:a..b", "module:../x", "W_q.3", ""],
    )
    def test_what_is_no_weight(self, name: str) -> None:
        with pytest.raises(InvalidArgument, match="names no weight"):
            Variant({name: delta()})

    @pytest.mark.parametrize(
        "hook",
        [
            Hook("resid_post.1", capture=Capture()),
            Hook("resid_post.1", Scale(2.0), capture=Capture(store=True)),
            Hook("resid_post.1", Scale(2.0), inputs=("a",)),
            Hook("resid_post.1", Replace(FromInput("a"))),
            Hook("resid_post.1", Replace(Stored("a"))),
        ],
    )
    def test_plan_that_reads(self, hook: Hook) -> None:
        with pytest.raises(InvalidArgument, match="a variant's hook at"):
            Variant(plan=Plan((hook,)))

    def test_bounds(self) -> None:
        with pytest.raises(InvalidArgument, match="changes nothing"):
            Variant()
        with pytest.raises(InvalidArgument, match="at most 256 hooks"):
            Variant(plan=Plan((Hook("resid_post.1", Replace(Constant(0.0))),) * 257))
        for name in ("a:b", "a/b", "..", "x" * 65, "", "a b", "a@2"):
            with pytest.raises(InvalidArgument):
                replace(variant(), manifest=Manifest(name=name or "é"))
        with pytest.raises(InvalidArgument, match="what JSON does not have"):
            Manifest(options={"x": np.float32(1)})
        with pytest.raises(InvalidArgument, match="give a Delta"):
            Variant({"w_q.0": (np.ones((1, 1)), np.ones((1, 1)))})
