"""One page an SAE: where each latent fires, what it says to the output, what is near it, and what adding it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, edit_latents
from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument, Unsupported
from ....protos.model import ModelInfo
from ....protos.saes import SaeInfo
from ..data.corpus import Texts, of
from ..latents.statistics import LatentCounts
from ..latents.stream import CONTEXT, stream_latents
from ..model.loaded import LoadedSae
from ..model.on_server import opened
from .data import BINS_PER_OCTAVE, DashboardData, Steered
from .examples import ExampleStore
from .page import dashboard_page
from .tokens import IGNORED, TokenEffects, nearest, readout, token_effects

__all__ = ["STRENGTHS", "Steering", "collect_dashboard", "dashboard"]

STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 2.0)
"""Of steering, in units of a strong activation of the latent."""
TOKENS_A_REQUEST = 1024

EXAMPLES_NOTE = (
    "An example is the text around a latent's largest activation in a window. Below the strongest, some from each quarter "
    "of its activations, with the share of windows whose activation is not larger, found on a uniform sample of"
)


@dataclass(frozen=True, slots=True)
class Steering:
    """Short generations with a latent raised: for how many latents, from which prompts, how strongly."""

    prompts: Sequence[str]
    latents: Sequence[int] | int = 16
    """Ids, or the first so many of those on the page, most often firing first."""
    strengths: Sequence[float] = STRENGTHS
    """In units of a strong activation of the latent, the median of its strongest examples; negative: against it. 0 is the
    untouched text to compare with."""
    max_new_tokens: int = 24


def dashboard(
    client: Client,
    sae: str | Path,
    texts: Texts,
    out_html: str | Path,
    *,
    latents: Sequence[int] | None = None,
    n_examples: int = 8,
    n_sampled: int = 24,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    steering: Steering | None = None,
    title: str = "",
    corpus: str = "",
    folder: str | Path | None = None,
    site: str = "",
    model: str = "",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Read a corpus once through the server and write the page of an SAE's latents: one file, no network.

    `sae`: the name of a loaded SAE (`folder`: where its files lie here, when not where the server has them from), or a
    folder, loaded for the while (`site`: where, when its config does not say). `latents`: those on the page; None: all.
    `n_examples`: strongest examples of each; `n_sampled`: size of the sample that its quantiles come from.
    `max_tokens`: read no more of the corpus. `corpus`: what to call it on the page. About 2 KB a latent.
    Raises NotFound for no such SAE, InvalidArgument for latents that it does not have or an empty corpus.
    """
    _check_path(Path(out_html))
    with opened(client, sae, folder=folder, site=site, model=model) as (info, loaded):
        data = collect_dashboard(
            client,
            info,
            loaded,
            texts,
            latents=latents,
            n_examples=n_examples,
            n_sampled=n_sampled,
            context=context,
            max_tokens=max_tokens,
            steering=steering,
            corpus=corpus,
            seed=seed,
            progress=progress,
        )
        dashboard_page(data, out_html, title=title or f"{loaded.folder.name}: latents at {info.site}")
    return Path(out_html)


def _check_path(page: Path) -> None:
    """Before anything is read: a page that cannot be written shall not be found out about at the end."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"{page.parent} cannot be made a folder: {error.strerror}") from None
    if page.is_dir():
        raise InvalidArgument(f"{page} is a folder; give the page's file, such as {page / 'sae.html'}")


def collect_dashboard(
    client: Client,
    info: SaeInfo,
    loaded: LoadedSae,
    texts: Texts,
    *,
    latents: Sequence[int] | None = None,
    n_examples: int = 8,
    n_sampled: int = 24,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    steering: Steering | None = None,
    corpus: str = "",
    seed: int = 0,
    progress: bool = True,
) -> DashboardData:
    """What `dashboard` writes, as values."""
    chosen, source = _chosen(latents, info.d_sae), of(texts)
    counts = LatentCounts.empty(info.d_sae, blocks=1, bins_per_octave=BINS_PER_OCTAVE)
    examples = ExampleStore(info.d_sae, n_top=n_examples, n_sampled=n_sampled, seed=seed)
    for window in stream_latents(client, info, source, context=context, max_tokens=max_tokens, progress=progress):
        counts.add(window)
        examples.add(window)
    directions = loaded.w_dec
    effects, why = _effects(client, info, directions[chosen])
    steered = _steered(client, info, steering, chosen, counts, examples, progress=progress) if steering else {}
    notes = [
        IGNORED if effects is not None else f"No promoted and suppressed tokens: {why}.",
        f"The corpus is read in windows of {context} tokens; the first token of each is left out, as attention parks there.",
        f"{EXAMPLES_NOTE} {n_sampled} windows.",
        "Nearest latents are by cosine of decoder directions, over all latents of the SAE.",
    ]
    if steering is not None:
        notes.append(
            "Steering adds to the latent at every token but the first; what the SAE does not explain is kept. Its unit is "
            "the median of the latent's strongest examples, as its largest activation may be one massive one."
        )
    about = _about(client.describe(info.model), info, loaded, counts, examples, corpus or _named(source.description))
    words = _words(client, effects, info.model)
    return DashboardData(about, notes, chosen, counts, examples, nearest(directions, chosen), effects, words, steered)


def _named(description: Mapping[str, Any]) -> str:
    return str(description.get("name") or Path(description["path"]).name)


def _chosen(latents: Sequence[int] | None, d_sae: int) -> NDArray[np.int64]:
    chosen = np.arange(d_sae) if latents is None else np.unique(np.array(latents, dtype=np.int64))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] >= d_sae:
        raise InvalidArgument(f"latents must be in 0 … {d_sae - 1}, at least one; got {list(latents or ())[:8]}")
    return chosen.astype(np.int64)


def _effects(client: Client, info: SaeInfo, directions: NDArray[np.float32]) -> tuple[TokenEffects | None, str]:
    """The token effects, or why there are none."""
    try:
        return token_effects(directions, readout(client, info.site, model=info.model)), ""
    except Unsupported as error:
        return None, error.message


def _words(client: Client, effects: TokenEffects | None, model: str) -> dict[int, str]:
    """Text of every token in the effects."""
    if effects is None:
        return {}
    ids = np.unique(np.concatenate([effects.promoted.ravel(), effects.suppressed.ravel()])).tolist()
    found: dict[int, str] = {}
    for start in range(0, len(ids), TOKENS_A_REQUEST):
        some = ids[start : start + TOKENS_A_REQUEST]
        found.update(zip(some, client.tokenize(some, model=model).tokens, strict=True))
    return found


def _about(
    model: ModelInfo, info: SaeInfo, loaded: LoadedSae, counts: LatentCounts, examples: ExampleStore, corpus: str
) -> dict[str, str | int]:
    return {
        "SAE": loaded.folder.name,
        "architecture": info.architecture + (f", k {info.k}" if info.k else ""),
        "trained": "yes" if loaded.trained else "no, as far as can be told",
        "site": info.site,
        "model": f"{model.id} ({model.dtype})",
        "width": info.d_in,
        "latents": info.d_sae,
        "corpus": corpus,
        "tokens": counts.n_tokens,
        "windows": len(examples.windows),
        "latents at a token, on average": f"{counts.rate.sum():.1f}",
    }


def _steered(
    client: Client,
    info: SaeInfo,
    steering: Steering,
    chosen: NDArray[np.int64],
    counts: LatentCounts,
    examples: ExampleStore,
    *,
    progress: bool,
) -> dict[int, list[Steered]]:
    """Latent → generations, prompt by prompt. Latents that never fire have no strength, and are left out."""
    ids = _steered_ids(steering, chosen, counts)
    prompts = {str(index): prompt for index, prompt in enumerate(steering.prompts)}
    strengths = sorted({0.0, *map(float, steering.strengths)})
    untouched = client.generate(prompts, model=info.model, max_new_tokens=steering.max_new_tokens)
    found: dict[int, list[Steered]] = {}
    with progress_bar("steering", "plans", show=progress) as bar:
        for done, latent in enumerate(ids):
            bar(done, len(ids))
            texts, unit = {0.0: untouched}, examples.strong(latent)
            for strength in strengths:
                if strength:
                    change = {latent: {"add": strength * unit}}
                    raised = edit_latents(info.site, info.name, change, spans=[(1, None)])
                    texts[strength] = client.generate(
                        prompts, hooks=[raised], model=info.model, max_new_tokens=steering.max_new_tokens
                    )
            found[latent] = [
                Steered(prompt, strength, strength * unit, texts[strength].inputs[name].text)
                for name, prompt in prompts.items()
                for strength in strengths
            ]
    return found


def _steered_ids(steering: Steering, chosen: NDArray[np.int64], counts: LatentCounts) -> list[int]:
    if not steering.prompts or isinstance(steering.prompts, str):
        raise InvalidArgument(f"steering.prompts must be a list of at least one prompt, got {steering.prompts!r}")
    if isinstance(steering.latents, int):
        rate = counts.rate[chosen]
        first = chosen[np.lexsort((chosen, -rate))][: steering.latents]
    else:
        first = _chosen(steering.latents, counts.d_sae)
    return [latent for latent in first.tolist() if counts.peak[latent] > 0]
