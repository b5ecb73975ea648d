"""Loaded variants: owned or shared, versions, bounded, held against their hash, there after a restart."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.protos.edits import Scale
from probewire.protos.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from probewire.protos.hooks import Hook, Where
from probewire.protos.model import ModelInfo
from probewire.protos.model_info import WeightInfo
from probewire.protos.saes import SaePart
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.stored import (
    LoadVariantRequest,
    VariantFile,
    VariantInfo,
    VariantPart,
    VariantPartRequest,
)
from probewire.protos.variants.use import VariantUse
from probewire.protos.variants.variant import Variant
from probewire.server.auth.users import User, UserLimits
from probewire.server.config import RequestLimits
from probewire.server.state import variants as module
from probewire.server.state.database import State
from probewire.server.state.uploads import Uploads
from probewire.server.state.variants import VariantStore
from probewire.server.worker.variant_loading import load_variant

WEIGHTS = (
    WeightInfo("w_q.0", "model.layers.0.self_attn.q_proj", 8, 8),
    WeightInfo("w_down.0", "model.layers.0.mlp.down_proj", 600, 8),
)
INFO = ModelInfo(
    "m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "ab" * 32, 1, 8, 4, 2, 2, 600, 261, weights=WEIGHTS
)
ADA, BOB = (User(name, "researcher", UserLimits()) for name in ("ada", "bob"))
ROOT = User("root", "admin", UserLimits())
LIMITS = RequestLimits(max_variants=3, max_all_variants=5)


def fits(variant: Variant) -> None:
    """Whether a model has a module, its backend says."""


def opened(folder: Path, limits: RequestLimits = LIMITS) -> VariantStore:
    state = State(folder)
    return VariantStore(state, Uploads(state.uploads), limits)


@pytest.fixture
def store(tmp_path: Path) -> VariantStore:
    return opened(tmp_path / "state")


def made(seed: int = 0, *, rank: int = 1, model_hash: str = "", hooks: tuple[Hook, ...] = ()) -> Variant:
    rng = np.random.default_rng(seed)
    delta = Delta(rng.normal(size=(8, rank)), rng.normal(size=(rank, 8)))
    return Variant({"w_q.0": delta}, Plan(hooks), Manifest(base=Base(model_hash=model_hash), method="made up"))


def put(store: VariantStore, user: User, variant: Variant, name: str = "a", **options: Any) -> VariantInfo:
    files = tuple(VariantFile(file, data) for file, data in variant.files().items())
    return load_variant(LoadVariantRequest(name, files=files, **options), user, INFO, store, (), fits)


def names(items: list[VariantInfo]) -> list[tuple[str, str, int]]:
    return [(item.owner, item.name, item.version) for item in items]


def test_what_was_loaded_is_there_after_a_restart(store: VariantStore, tmp_path: Path) -> None:
    variant = made(hooks=(Hook("resid_post.0", Scale(0.5)),))
    item = put(store, ADA, variant)
    assert item.hash == variant.bound(INFO).hash
    assert (item.version, item.weights, item.max_rank, item.n_hooks, item.method) == (1, ("w_q.0",), 1, 1, "made up")
    again = opened(tmp_path / "state")
    assert again.list(ADA) == [item]
    use = VariantUse("a", 0.5, Where(phase="generated"))
    [found] = again.resolve((use,), ADA, INFO)
    assert found.variant == variant.bound(INFO).named("a")
    assert (found.name, found.version, found.hash, found.owner, found.scale) == ("a", 1, item.hash, "ada", 0.5)
    assert found.where == use.where
    assert again.resolve((use,), ADA, INFO)[0].variant is found.variant  # kept ready


def test_versions_are_counted_and_never_given_twice(store: VariantStore) -> None:
    first = put(store, ADA, made(1))
    assert put(store, ADA, made(1)) == first  # the same again is no new one
    second = put(store, ADA, made(2))
    assert (second.version, second.hash == first.hash) == (2, False)

    def hash_of(name: str) -> str:
        return store.get(ADA, name, "m").hash

    assert [hash_of(name) for name in ("a", "a@2", "a@1", f"sha256:{first.hash[:12]}")] == [
        *(second.hash, second.hash, first.hash, first.hash)
    ]
    store.delete(ADA, "a@2")
    assert hash_of("a") == first.hash
    with pytest.raises(NotFound, match="no variant 'a@2' is loaded for you on m; loaded: a"):
        hash_of("a@2")
    assert put(store, ADA, made(3)).version == 3
    assert store.delete(ADA, "a").version == 3
    assert store.list(ADA) == []
    assert put(store, ADA, made(2)).version == 4


def test_private_is_private_and_shared_is_named_by_its_owner(store: VariantStore) -> None:
    mine = put(store, ADA, made(1))
    for name in ("a", "ada/a", "a@1", f"sha256:{mine.hash}"):
        with pytest.raises(NotFound, match="loaded: none"):
            store.get(BOB, name)
    with pytest.raises(NotFound):
        store.delete(BOB, "a")
    assert store.list(BOB) == []
    assert names(store.list(ROOT)) == [("ada", "a", 1)]
    with pytest.raises(NotFound):
        store.resolve((VariantUse("a"),), ROOT, INFO)  # to unload, and not to use

    shared = put(store, ADA, made(1), shared=True)
    assert (shared.version, shared.shared) == (1, True)
    assert store.get(BOB, "a").hash == store.get(BOB, "ada/a@1").hash == mine.hash
    own = put(store, BOB, made(2))
    assert store.get(BOB, "a").hash == own.hash  # one's own first
    assert store.get(BOB, "ada/a").hash == mine.hash
    assert names(store.list(BOB)) == [("bob", "a", 1), ("ada", "a", 1)]
    with pytest.raises(PermissionDenied, match="belongs to ada"):
        store.delete(BOB, "ada/a")
    store.delete(ROOT, "ada/a")
    put(store, ADA, made(1), shared=True)
    put(store, ADA, made(1), shared=False)
    with pytest.raises(NotFound):
        store.get(BOB, "ada/a")


def test_a_name_of_two_others_is_told_apart(store: VariantStore) -> None:
    put(store, ADA, made(1), shared=True)
    put(store, ROOT, made(2), shared=True)
    with pytest.raises(InvalidArgument, match=r"stands for several: of ada/m, root/m; name the owner \(owner/a\)"):
        store.get(BOB, "a")
    assert store.get(BOB, "root/a").owner == "root"


def test_a_damaged_file_is_refused_and_not_served(store: VariantStore, tmp_path: Path) -> None:
    put(store, ADA, made(1))
    [folder] = (tmp_path / "state" / "variants").iterdir()
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # another number, in a file that is well formed
    file.write_bytes(data)
    with pytest.raises(Internal, match=r"variant 'a' \(version 1\) are damaged, so it is not served"):
        opened(tmp_path / "state").resolve((VariantUse("a"),), ADA, INFO)
    file.unlink()
    with pytest.raises(Internal, match="damaged"):
        opened(tmp_path / "state").resolve((VariantUse("a"),), ADA, INFO)


def test_another_model_under_the_same_id_is_refused(store: VariantStore) -> None:
    put(store, ADA, made(1))
    with pytest.raises(FailedPrecondition, match=r"of model abababababababab….*rebase=True"):
        store.resolve((VariantUse("a"),), ADA, replace(INFO, model_hash="cd" * 32))
    with pytest.raises(FailedPrecondition, match="cdcdcdcd"):
        put(store, ADA, made(1, model_hash="cd" * 32))
    assert put(store, ADA, made(1, model_hash="cd" * 32), rebase=True).hash == store.get(ADA, "a").hash


def test_bounds(store: VariantStore, tmp_path: Path) -> None:
    wide = Delta(np.ones((600, 513)), np.ones((513, 8)))
    with pytest.raises(InvalidArgument, match=r"rank 513; at most 512 are served: compress it"):
        put(store, ADA, Variant({"w_down.0": wide}))
    for seed in range(3):
        put(store, ADA, made(seed))
    with pytest.raises(ResourceExhausted, match="ada has 3 variants loaded, the most allowed"):
        put(store, ADA, made(3))
    put(store, BOB, made(0))
    put(store, BOB, made(1))
    with pytest.raises(ResourceExhausted, match="the box has 5 variants"):
        put(store, BOB, made(2))
    assert len(list((tmp_path / "state" / "variants").iterdir())) == 5
    small = opened(tmp_path / "small", RequestLimits(max_variant_bytes=500))
    with pytest.raises(InvalidArgument, match="at most 500 fit"):
        put(small, ADA, made(0))
    full = opened(tmp_path / "full", RequestLimits(max_store_bytes=1000))
    with pytest.raises(ResourceExhausted, match="of the box's 1,000 are in use by SAEs and variants"):
        put(full, ADA, made(0))
    assert list((tmp_path / "full" / "variants").iterdir()) == []


def test_files_in_parts_and_back(store: VariantStore, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made(5).files()
    big = files["deltas.safetensors"]
    upload = sha256(big).hexdigest()
    half = len(big) // 2
    assert store.receive(ADA, SaePart(upload, len(big), 0, big[:half])).n_bytes == half
    request = LoadVariantRequest(
        "a",
        files=(VariantFile("variant.json", files["variant.json"]), VariantFile("deltas.safetensors", upload=upload)),
    )
    with pytest.raises(InvalidArgument, match="damaged or not all"):
        load_variant(request, ADA, INFO, store, (), fits)
    with pytest.raises(NotFound, match="no file with the SHA-256"):
        load_variant(request, ADA, INFO, store, (), fits)
    assert store.receive(ADA, SaePart(upload, len(big), 0, big)).n_bytes == len(big)
    item = load_variant(request, ADA, INFO, store, (), fits)
    assert store.uploads.n_bytes() == 0
    assert item.hash == made(5).bound(INFO).hash

    kept = next(file for file in item.files if file.name == "adapter_model.safetensors")
    assert store.receive(ADA, SaePart(kept.sha256, kept.n_bytes)).n_bytes == kept.n_bytes  # nothing need be sent
    assert store.receive(BOB, SaePart(kept.sha256, kept.n_bytes)).n_bytes == 0

    monkeypatch.setattr(module, "PART_BYTES", 100)
    back: dict[str, bytes] = {}
    for file in item.files:
        parts = [store.part(ADA, VariantPartRequest("a", file.name, "m", at)) for at in range(0, file.n_bytes, 100)]
        assert {part.n_bytes for part in parts} == {file.n_bytes}
        back[file.name] = b"".join(part.data for part in parts)
    assert Variant.of_files(back, "it").hash == item.hash
    assert store.part(ADA, VariantPartRequest("a", "variant.json", offset=item.files[0].n_bytes)) == VariantPart(
        item.files[0].n_bytes, item.files[0].n_bytes
    )
    with pytest.raises(InvalidArgument, match="none from 10,000,000 on"):
        store.part(ADA, VariantPartRequest("a", "variant.json", offset=10_000_000))
    with pytest.raises(NotFound, match=r"no file '\.\./state\.sqlite'; it has variant\.json"):
        store.part(ADA, VariantPartRequest("a", "../state.sqlite"))
    with pytest.raises(NotFound):
        store.part(BOB, VariantPartRequest("a", "variant.json"))


class TestFolders:
    def test_an_admin_loads_from_anywhere_and_others_from_where_they_may(
        self, store: VariantStore, tmp_path: Path
    ) -> None:
        folder = made(1).save(tmp_path / "shelf" / "formal")
        request = LoadVariantRequest(source=str(folder))
        item = load_variant(request, ROOT, INFO, store, (), fits)
        assert (item.name, item.source) == ("formal", str(folder))
        with pytest.raises(PermissionDenied, match=r"none \(the operator sets them with --variant-folder\)"):
            load_variant(request, ADA, INFO, store, (), fits)
        allowed = (str(tmp_path / "shelf"),)
        assert load_variant(LoadVariantRequest(source="formal"), ADA, INFO, store, allowed, fits).hash == item.hash
        for escape in ("../state", "/etc", ".."):
            with pytest.raises(PermissionDenied):
                load_variant(LoadVariantRequest(source=escape), ADA, INFO, store, allowed, fits)
        with pytest.raises(NotFound, match="no folder"):
            load_variant(LoadVariantRequest(source=str(tmp_path / "nothing")), ROOT, INFO, store, (), fits)

    def test_a_variant_has_a_name(self, store: VariantStore) -> None:
        with pytest.raises(InvalidArgument, match="has no name: give one"):
            put(store, ADA, made(1), "")
        assert put(store, ADA, made(1).named("said"), "").name == "said"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (lambda: LoadVariantRequest("a"), "exactly one of source"),
        (lambda: LoadVariantRequest("a:b", source="x"), "1 to 64 letters"),
        (lambda: LoadVariantRequest("x" * 65, source="x"), "1 to 64 letters"),
        (lambda: LoadVariantRequest("..", source="x"), "1 to 64 letters"),
        (lambda: LoadVariantRequest(source="x\n"), "printable"),
        (lambda: VariantFile("../x", b"a"), "has no file"),
        (lambda: VariantFile("variant.json"), "exactly one of data and upload"),
        (lambda: VariantFile("variant.json", upload="x"), "64 small hex digits"),
        (lambda: LoadVariantRequest(files=(VariantFile("plan.json", b"a"),) * 2), "twice"),
        (lambda: VariantPartRequest("a", "x", offset=-1), "0 or more"),
    ],
)
def test_requests_that_are_none(request_: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        request_()
