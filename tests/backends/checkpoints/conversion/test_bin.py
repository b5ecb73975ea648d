"""pytorch_model.bin: tensors and nothing else, never run."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from probewire.backends import load_backend
from probewire.backends.checkpoints import convert_model, resolve_model
from probewire.backends.model.limits import Limits
from probewire.protos.errors import FailedPrecondition, InvalidArgument

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)
RAN = Path("/tmp/a-pickle-was-run")


class Trap:
    """What a pickle may carry: a call, made where it is loaded."""

    def __reduce__(self) -> Any:
        return Path.touch, (RAN,)


class Shell:
    """The same of a module that torch itself blocks."""

    def __reduce__(self) -> Any:
        return subprocess.call, (["touch", str(RAN)],)


@pytest.fixture
def pickled(plain: Path, tmp_path: Path) -> Path:
    """The plain model as torch.save writes it."""
    folder = tmp_path / "pickled"
    shutil.copytree(plain, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_every_tensor_comes_through_to_the_bit(pickled: Path, plain: Path, cache: Path) -> None:
    found = resolve_model(str(pickled), cache_dir=cache)
    before, after = load_file(plain / "model.safetensors"), load_file(found.folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((found.folder / "config.json").read_text()) == json.loads((plain / "config.json").read_text())


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_load_backend_converts_it_too(name: str, pickled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probewire.backends.checkpoints.checkpoint.default_cache_dir", lambda: cache)
    load_backend(name, pickled, model_id="tiny", limits=LIMITS, device="cpu", check=False).close()
    assert len(list(cache.glob("converted/pickled-*"))) == 1


def test_shards_views_and_dtypes(pickled: Path, cache: Path) -> None:
    """Parts with an index; a view of a larger tensor, a transposed one, bfloat16, and what torch 1.5 wrote."""
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    names = list(weights)
    weights[names[0]] = torch.randn(2, *weights[names[0]].shape)[1]
    weights[names[1]] = weights[names[1]].T.contiguous().T
    weights[names[2]] = weights[names[2]].bfloat16()
    parts = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for i, file in enumerate(sorted(set(parts.values()))):
        mine = {name: weights[name] for name in names if parts[name] == file}
        torch.save(mine, pickled / file, _use_new_zipfile_serialization=i == 0)
    (pickled / "pytorch_model.bin").unlink()
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))
    after = load_file(resolve_model(str(pickled), cache_dir=cache).folder / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) and weights[name].dtype == after[name].dtype for name in names)
    (pickled / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InvalidArgument, match=r"lists 'pytorch_model-00002-of-00002\.bin', which is missing"):
        resolve_model(str(pickled), cache_dir=cache)


def _saved(content: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(content, file)


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-500]), "cannot be read as a file of torch.save"),
    "cut to nothing": (lambda file: file.write_bytes(b""), "cannot be read as a file of torch.save"),
    "a trap": (
        _saved({"w": Trap()}),
        "holds other things than tensors, and nothing in it was run: it names getattr, which is no tensor",
    ),
    "a bare pickle": (lambda file: file.write_bytes(pickle.dumps(Trap())), "nothing in it was run"),
    "a blocked module": (_saved({"w": Shell()}), r"nothing in it was run: it names \w+\.call, which"),
    "no dict": (_saved([torch.zeros(2)]), "holds list, not tensors by name"),
    "more than tensors": (
        _saved({"w": torch.zeros(2), "step": 3}),
        "holds int under 'step', where weights alone belong",
    ),
    "nested": (_saved({"model": {"w": torch.zeros(2)}}), "holds dict under 'model'"),
    "sparse": (_saved({"w": torch.eye(3).to_sparse()}), "holds w as a sparse or quantised tensor"),
    "complex": (_saved({"w": torch.zeros(2, dtype=torch.complex64)}), "stores w as complex64"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse:UserWarning")
@pytest.mark.parametrize("what", SPOILT)
def test_what_is_no_file_of_tensors_is_refused_and_never_run(what: str, pickled: Path, cache: Path) -> None:
    RAN.unlink(missing_ok=True)
    spoil, words = SPOILT[what]
    spoil(pickled / "pytorch_model.bin")
    with pytest.raises(InvalidArgument, match=words) as caught:
        resolve_model(str(pickled), cache_dir=cache)
    assert "weights_only" not in caught.value.message, "torch advises to run it"
    assert not RAN.exists()
    assert [path.name for path in cache.glob("converted/*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_what_has_no_place_is_refused_under_the_name_of_its_source(
    name: str, pickled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own path where it is converted on the way, and by the name that it was found by where it was before."""
    monkeypatch.setattr("probewire.backends.checkpoints.checkpoint.default_cache_dir", lambda: cache)
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    weights["model.layers.1.mlp.more.weight"] = torch.zeros(2, 2)
    torch.save(weights, pickled / "pytorch_model.bin")
    found = resolve_model(str(pickled), cache_dir=cache)
    for folder, source in ((pickled, ""), (found.folder, str(pickled)), (found.folder, "org/half")):
        with pytest.raises(InvalidArgument) as caught:
            load_backend(name, folder, model_id="tiny", limits=LIMITS, device="cpu", check=False, source=source)
        assert f"the checkpoint in {source or pickled} (converted into {found.folder}) " in caught.value.message
    with pytest.raises(InvalidArgument) as caught:
        load_backend(name, found.folder, model_id="tiny", limits=LIMITS, device="cpu", check=False)
    assert f"the checkpoint in {found.folder} " in caught.value.message


def _lacks_one(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _lacks_a_layer(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if ".layers.1." in name]:
        del weights[name]


def _has_half_of_one(weights: dict[str, torch.Tensor]) -> None:
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:100].clone()


HALVES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "a weight is missing": (
        _lacks_one,
        r"lacks 1 weights of its architecture, for example \['model\.layers\.1\.mlp\.up_proj",
    ),
    "a layer is missing": (_lacks_a_layer, r"holds no weight of 1 of its 2 layers \(1\)"),
    "half of a weight": (_has_half_of_one, r"holds model\.embed_tokens\.weight as \[100, 64\], but under its config"),
}


@pytest.mark.parametrize("what", HALVES)
def test_half_a_model_is_not_converted_and_leaves_nothing(
    what: str, pickled: Path, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    halve, words = HALVES[what]
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    halve(weights)
    torch.save(weights, pickled / "pytorch_model.bin")
    for out in (None, tmp_path / "out"):
        with pytest.raises(InvalidArgument, match=rf"^the checkpoint in {pickled} {words}"):
            convert_model(str(pickled), out, cache_dir=cache)
    assert nothing_left(tmp_path, cache)
    assert "LOAD REPORT" not in capfd.readouterr().err


def nothing_left(out: Path, cache: Path) -> bool:
    """Neither beside the output folder, nor in the cache."""
    return not [*out.glob("*out*"), *(path for path in cache.glob("converted/*") if path.suffix != ".lock")]


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_anywhere(share: float, as_zip: bool, pickled: Path, cache: Path, tmp_path: Path) -> None:
    file = pickled / "pytorch_model.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=as_zip)
    file.write_bytes(file.read_bytes()[: round(share * file.stat().st_size)])
    with pytest.raises(
        InvalidArgument, match=r"pytorch_model\.bin cannot be read as a file of torch\.save.*fetch it again"
    ):
        convert_model(str(pickled), cache_dir=cache)
    assert nothing_left(tmp_path, cache)


def test_a_file_of_full_length_with_a_part_that_was_never_fetched(pickled: Path, cache: Path, tmp_path: Path) -> None:
    """It reads as zeros, and torch does not look at check sums."""
    file = pickled / "pytorch_model.bin"
    content = bytearray(file.read_bytes())
    start = len(content) // 2
    content[start : start + 4096] = bytes(4096)
    file.write_bytes(content)
    with pytest.raises(
        InvalidArgument, match=r"pytorch_model\.bin is damaged: \S+/data/\d+ in it is not what was written"
    ):
        convert_model(str(pickled), cache_dir=cache)
    assert nothing_left(tmp_path, cache)


def test_a_file_that_was_written_without_check_sums(pickled: Path, cache: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.load(pickled / "pytorch_model.bin", weights_only=True), pickled / "pytorch_model.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert (convert_model(str(pickled), cache_dir=cache).folder / "model.safetensors").is_file()


def test_an_index_lists_a_tensor_that_no_file_holds(pickled: Path, cache: Path, tmp_path: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    index = {"weight_map": dict.fromkeys([*weights, "model.layers.1.one_more"], "pytorch_model.bin")}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(
        InvalidArgument, match=r"lists 1 tensors that its files do not hold, model\.layers\.1\.one_more first"
    ):
        convert_model(str(pickled), cache_dir=cache)
    assert nothing_left(tmp_path, cache)


def test_a_disk_that_takes_no_more(pickled: Path, cache: Path, tmp_path: Path) -> None:
    """The system itself refuses to write on, in the middle of the weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        for out in (None, tmp_path / "out"):
            with pytest.raises(FailedPrecondition, match=r"cannot be written: File too large; nothing was left behind"):
                convert_model(str(pickled), out, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert nothing_left(tmp_path, cache)
    assert (convert_model(str(pickled), cache_dir=cache).folder / "model.safetensors").is_file()


def test_without_torch_it_says_what_is_missing(pickled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "probewire.backends.torch.pickled", None)
    with pytest.raises(FailedPrecondition, match=r"is in torch's own format.*pip install 'probewire\[torch\]'"):
        resolve_model(str(pickled), cache_dir=cache)


def test_another_dtype(pickled: Path, plain: Path, tmp_path: Path, cache: Path) -> None:
    made = convert_model(str(pickled), tmp_path / "out", dtype="bfloat16", cache_dir=cache)
    before, after = load_file(plain / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    config = json.loads((made.folder / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def test_a_dtype_that_does_not_hold_a_number(pickled: Path, tmp_path: Path, cache: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    weights["model.norm.weight"] = torch.full((64,), 1e5)
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(InvalidArgument, match=r"model\.norm\.weight has values that F16 does not hold"):
        convert_model(str(pickled), tmp_path / "out", dtype="float16", cache_dir=cache)
    assert not (tmp_path / "out").exists()
