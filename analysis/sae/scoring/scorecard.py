"""Score SAEs on a model: several at once, on the same texts, beside an SAE of the same shape that was never trained."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Input, capture
from ....clients.requests.prompts import Prompts
from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.saes import SaeInfo
from ...ablation.reference import tokenized
from ..model.loaded import LoadedSae, load, require_trained
from ..model.untrained import untrained_like
from .absorption import absorption
from .first_letter import FirstLetterRows, read_first_letters
from .losses import POSITIONS_FOR_KL, Losses, losses
from .probe_data import PAIRS, SETS, LabelledTexts, bundled
from .probe_rows import ProbeRows, read_rows
from .probing import Probing, baseline_probing, sae_probing
from .scorecard_report import Entry, Scorecard
from .scores import score_rows
from .splice import Spare, batched
from .spurious import biography_rows, correlation_removal
from .targeted import targeted_perturbation

__all__ = ["EVALUATIONS", "Evaluation", "score"]

Evaluation = Literal["core", "sparse_probing", "tpp", "scr", "absorption"]
EVALUATIONS: tuple[Evaluation, ...] = get_args(Evaluation)
CONTROL = "untrained"
LEAST_CLASSES = 3
"""Of a set of texts, for TPP."""

Saes = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
"""A folder in the sae-lens format; several; or several by name."""


@dataclass(frozen=True, slots=True, eq=False)
class _Material:
    """What every SAE is scored on, read once."""

    rows: Sequence[NDArray[Any]]
    texts: Sequence[ProbeRows]
    baseline: Probing | None
    biographies: Sequence[ProbeRows]
    words: FirstLetterRows | str | None
    """Or why there are none."""


def score(
    client: Client,
    saes: Saes,
    contexts: Prompts,
    *,
    evaluations: Sequence[Evaluation] = EVALUATIONS,
    site: str = "",
    control: bool = True,
    spare: Spare = "none",
    context_length: int = 128,
    kl_positions: int | None = POSITIONS_FOR_KL,
    texts: Sequence[LabelledTexts] | None = None,
    n_train: int = 128,
    n_test: int = 64,
    words_a_letter: int | None = None,
    allow_untrained: bool = False,
    seed: int = 0,
    progress: bool = True,
    model: str = "",
) -> Scorecard:
    """Score SAEs of one site on held-out `contexts` (cut to `context_length` tokens), and on the texts of each evaluation.

    `evaluations`: "core" (reconstruction, sparsity and losses), "sparse_probing" and "tpp" (on `texts`, or the
    package's own, `n_train` and `n_test` a class), "scr" (the package's biographies) and "absorption" (first letters,
    `words_a_letter` at most). `site`: where they read, when their configs do not say. `control`: score an untrained SAE
    like the first beside them. `spare`: positions that keep the model's own activation in the losses.
    The SAEs are loaded on the server under names of their own and unloaded at the end.

    Raises FailedPrecondition for an SAE that was never trained (unless `allow_untrained`), before anything runs;
    InvalidArgument for SAEs of different sites, or of another width than the site.
    """
    unknown = [name for name in evaluations if name not in EVALUATIONS]
    if unknown or not evaluations:
        raise InvalidArgument(f"evaluations {list(evaluations)}; allowed: {', '.join(EVALUATIONS)}")
    found = {name: load(folder) for name, folder in _by_name(saes).items()}
    if not allow_untrained:
        for sae in found.values():
            require_trained(sae)
    inputs = _cut(client, contexts, context_length, model)
    with tempfile.TemporaryDirectory() as folder:
        if control:
            if CONTROL in found:
                raise InvalidArgument(f"an SAE is called {CONTROL!r}, as the control is; give it another name")
            first = next(iter(found.values()))
            found[CONTROL] = load(untrained_like(first, Path(folder) / CONTROL, seed=seed))
        with _on_server(client, found, site, model) as infos:
            where = _one_site(infos)
            material = _read(
                client, inputs, where, evaluations, texts, n_train, n_test, words_a_letter, seed, progress, model
            )
            lost = None
            if "core" in evaluations:
                names = {info.name: name for name, info in infos.items()}
                measured = losses(
                    client,
                    inputs,
                    where,
                    list(names),
                    spare=spare,
                    kl_positions=kl_positions,
                    seed=seed,
                    progress=progress,
                    model=model,
                )
                lost = replace(measured, saes={names[label]: variant for label, variant in measured.saes.items()})
            entries = {
                name: _entry(sae, infos[name], material, evaluations, seed, control=control and name == CONTROL)
                for name, sae in found.items()
            }
    return Scorecard(entries, lost, _about(client, inputs, where, evaluations, lost, seed, model))


def _entry(
    sae: LoadedSae,
    info: SaeInfo,
    material: _Material,
    evaluations: Sequence[Evaluation],
    seed: int,
    *,
    control: bool,
) -> Entry:
    """One SAE on material that is in hand. Whether it was trained is settled: `score` asked, or was told not to."""
    entry = Entry("" if control else str(sae.folder), sae.architecture, sae.d_in, sae.d_sae, info.hash, control)
    options: dict[str, Any] = {"seed": seed, "allow_untrained": True}
    refused: dict[str, str] = {}
    if "core" in evaluations:
        entry = replace(entry, scores=score_rows(sae, material.rows, allow_untrained=True))
    if material.baseline is not None:
        entry = replace(entry, probing=sae_probing(sae, material.texts, **options).merged(material.baseline))
    if "tpp" in evaluations:
        sets = [texts for texts in material.texts if len(texts.classes) >= LEAST_CLASSES]
        entry = replace(entry, tpp=[targeted_perturbation(sae, texts, **options) for texts in sets])
        if not sets:
            refused["tpp"] = f"no set of texts has {LEAST_CLASSES} classes or more"
    if "scr" in evaluations:
        entry = replace(entry, scr=[correlation_removal(sae, texts, **options) for texts in material.biographies])
    if isinstance(material.words, str):
        refused["absorption"] = material.words
    elif material.words is not None:
        try:
            entry = replace(entry, absorption=absorption(sae, material.words, **options))
        except FailedPrecondition as reason:  # a small model may not hold the letters: the rest stands
            refused["absorption"] = str(reason)
    return replace(entry, refused=refused)


def _read(
    client: Client,
    inputs: Sequence[Input],
    site: str,
    evaluations: Sequence[Evaluation],
    texts: Sequence[LabelledTexts] | None,
    n_train: int,
    n_test: int,
    words_a_letter: int | None,
    seed: int,
    progress: bool,
    model: str,
) -> _Material:
    rows: list[NDArray[Any]] = []
    if "core" in evaluations:
        for some in batched(inputs, 16):
            run = client.run(some, capture=[capture(site)], model=model)
            found = (run.inputs[item.name][site] for item in some)
            rows += [part.astype(np.float32).reshape(len(part), -1) for part in found]
    labelled: list[ProbeRows] = []
    if {"sparse_probing", "tpp"} & set(evaluations):
        given = [bundled(name, n_train=n_train, n_test=n_test, seed=seed) for name in SETS] if texts is None else texts
        if "sparse_probing" not in evaluations:
            given = [data for data in given if len(data.classes) >= LEAST_CLASSES]
        labelled = [read_rows(client, data, site, model=model) for data in given]
    baseline = baseline_probing(labelled, seed=seed) if "sparse_probing" in evaluations else None
    pairs = PAIRS if "scr" in evaluations else ()
    biographies = [
        biography_rows(client, pair, site, n_train=n_train, n_test=n_test, seed=seed, model=model) for pair in pairs
    ]
    words: FirstLetterRows | str | None = None
    if "absorption" in evaluations:
        words = _words(client, site, words_a_letter, seed, progress, model)
    return _Material(rows, labelled, baseline, biographies, words)


def _words(
    client: Client, site: str, most_a_letter: int | None, seed: int, progress: bool, model: str
) -> FirstLetterRows | str:
    """The first-letter task, or why this model's tokenizer has none."""
    try:
        return read_first_letters(client, site, most_a_letter=most_a_letter, seed=seed, progress=progress, model=model)
    except InvalidArgument as reason:
        return str(reason)


@contextmanager
def _on_server(client: Client, saes: Mapping[str, LoadedSae], site: str, model: str) -> Generator[dict[str, SaeInfo]]:
    """The SAEs on the server, under labels of their own, for as long as the context lasts."""
    infos: dict[str, SaeInfo] = {}
    try:
        for name, sae in saes.items():
            label = f"{name[:100]} {uuid4().hex[:8]}"
            infos[name] = client.load_sae(sae.folder, site=site, name=label, model=model)
        yield infos
    finally:
        for info in infos.values():
            client.unload_sae(info.name, model=model)


def _by_name(saes: Saes) -> dict[str, Path]:
    if isinstance(saes, Mapping):
        named = {name: Path(folder) for name, folder in saes.items()}
    else:
        folders = [Path(folder) for folder in ([saes] if isinstance(saes, (str, Path)) else saes)]
        named = {folder.name: folder for folder in folders}
        if len(named) < len(folders):
            raise InvalidArgument(f"folders of the same name: {', '.join(map(str, folders))}; give name → folder")
    if not named:
        raise InvalidArgument("there is no SAE to score; give a folder")
    return named


def _one_site(infos: Mapping[str, SaeInfo]) -> str:
    sites = {name: info.site for name, info in infos.items()}
    if len(set(sites.values())) != 1:
        raise InvalidArgument(f"a scorecard is of one site, and the SAEs read {sites}; make a scorecard for each site")
    return next(iter(sites.values()))


def _cut(client: Client, contexts: Prompts, length: int, model: str) -> list[Input]:
    if length < 2:
        raise InvalidArgument(f"context_length must be 2 or more, got {length}")
    found = tokenized(client, contexts, model=model).values()
    return [Input(token_ids=tuple(item.token_ids or ())[:length], name=item.name) for item in found]


def _about(
    client: Client,
    inputs: Sequence[Input],
    site: str,
    evaluations: Sequence[Evaluation],
    lost: Losses | None,
    seed: int,
    model: str,
) -> dict[str, Any]:
    info = client.describe(model)
    n_tokens = sum(len(item.token_ids or ()) for item in inputs)
    ids = hashlib.sha256(str([list(item.token_ids or ()) for item in inputs]).encode()).hexdigest()
    return {
        "model": info.id,
        "model_hash": info.model_hash,
        "backend": f"{info.backend}, {info.dtype}",
        "site": site,
        "texts": f"{len(inputs)} contexts, {n_tokens} tokens",
        "texts_hash": ids,
        "evaluations": list(evaluations),
        "losses": lost.spliced.rule if lost is not None else "not measured",
        "seed": seed,
    }
