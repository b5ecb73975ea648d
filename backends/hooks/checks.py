"""Is this hook one that this model can honour exactly? Everything that is refused, is refused here, before a forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    FromInput,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Stored,
)
from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo, SiteInfo
from ...protos.sites import ATTENTION_SITES, HEAD_SITES, Site
from ...protos.spec import Capture, Condition, Gather, Hook, NextLogprob, Project, TopK, Where
from ...protos.tensors import Tensor
from ..model.sites import ROW_EDITS
from .points import Points
from .ranges import check_numbers

if TYPE_CHECKING:
    from .bound import Bindable

__all__ = ["check_hook", "check_where", "edit_name", "expand", "from_input", "widths_of"]


def edit_name(edit: Edit) -> str:
    """The name of an edit as users write it."""
    names = {"ProjectOut": "project_out", "LowRank": "low_rank"}
    return names.get(type(edit).__name__, type(edit).__name__.lower())


def expand(hook: Hook, info: ModelInfo, where: str) -> tuple[Site, ...]:
    """Concrete sites of a hook, of every layer that has them; raises InvalidArgument when a layer does not exist."""
    try:
        return info.expand(hook.site)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from None


def check_hook(
    hook: Hook,
    sites: tuple[Site, ...],
    model: Bindable,
    mode: str,
    where: str,
    *,
    prompt_length: int,
    n_rows: int,
) -> None:
    """Raise InvalidArgument unless this model can honour the hook exactly."""
    info = model.info
    offered = _offered(sites, model, mode, where)
    check_where(hook.where, prompt_length, n_rows, where)
    for condition in () if hook.where.when is None else hook.where.when.parts:
        _check_condition(condition, sites, model, mode, where)
    if hook.edit is not None:
        check_numbers(hook.edit, info.dtype, where)
        if isinstance(hook.edit, LowRank):
            _check_read(hook.edit, sites, model.points, where)
    one_of_each = {offered.at(site.layer): site for site in reversed(sites)}
    if len(one_of_each) > 1 and isinstance(hook.edit, Replace) and isinstance(hook.edit.source, (FromInput, Stored)):
        told = ", ".join(f"{site} {list(widths)}" for widths, site in one_of_each.items())
        raise InvalidArgument(f"{where}: rows of these layers differ in size ({told}); write a hook for each size")
    for widths, site in sorted(one_of_each.items(), key=lambda item: item[1].layer or 0):
        of = where if len(one_of_each) == 1 else f"{where}: {site}, whose rows are not those of all its layers"
        _check_sizes(hook, site, offered, widths, mode, of)
    if hook.capture is not None and hook.capture.gradient and sites[0].name != "module" and not offered.gradients:
        allowed = ", ".join(s.name for s in info.sites if s.gradients)
        raise InvalidArgument(f"{where}: {sites[0].name} offers no gradients; allowed: {allowed}")
    if hook.edit is not None and sites[0].name == "logits" and mode == "generate" and hook.where.phase == "prompt":
        raise InvalidArgument(f"{where}: editing logits of prompt rows changes nothing; edit them with phase 'all'")


def _check_sizes(hook: Hook, site: Site, offered: SiteInfo, widths: tuple[int, ...], mode: str, where: str) -> None:
    """What a hook says of its rows, against those of one of its sites."""
    if hook.edit is not None:
        _check_edit(hook.edit, site, offered, widths, where)
    if hook.capture is not None:
        _check_capture(hook.capture, site, widths, mode, hook.where.when is not None, where)


def widths_of(site: Site, model: Bindable) -> tuple[int, ...]:
    """Sizes of a site's axes after its row axis; 0 for the key axis. The site is one that the model offers."""
    if site.name == "module":
        return model.points.tail(site)
    offered = model.info.site(site.name)
    assert offered is not None
    return offered.at(site.layer)


def _offered(sites: tuple[Site, ...], model: Bindable, mode: str, where: str) -> SiteInfo:
    name, info = sites[0].name, model.info
    if name == "module":
        return _raw(sites[0], model.points, mode, where)
    offered = info.site(name)
    if offered is None:
        allowed = ", ".join(site.name for site in info.sites) or "raw module sites only"
        why = f" ({info.refused[name]})" if name in info.refused else ""
        raise InvalidArgument(
            f"{where}: this model ({info.architecture} on {info.backend}) has no site {name}{why}; allowed: {allowed}"
        )
    if not (offered.generate if mode == "generate" else offered.run):
        raise InvalidArgument(f"{where}: {name} is not offered in {mode}: {offered.note}")
    missing = [s.layer for s in sites if offered.layers is not None and s.layer not in offered.layers]
    if missing:
        raise InvalidArgument(
            f"{where}: {name} does not exist at layers {missing}; it does at {list(offered.layers or ())}"
        )
    return offered


def _raw(site: Site, points: Points, mode: str, where: str) -> SiteInfo:
    """What can be done at a raw module: everything that needs no more than its width."""
    if reason := points.reason_to_refuse(site, mode):
        raise InvalidArgument(f"{where}: {reason}")
    widths = points.tail(site)
    edits = (*ROW_EDITS, *(("latents",) if len(widths) == 1 else ()))
    return SiteInfo(site.name, site.axes, widths, edits=edits)


def check_where(where: Where, prompt_length: int, n_rows: int, what: str) -> None:
    """Raise InvalidArgument for positions that a sequence of so many rows does not have."""
    for position in where.positions or ():
        absolute = position + prompt_length if position < 0 else position
        if not 0 <= absolute < n_rows:
            raise InvalidArgument(
                f"{what}: position {position} is outside 0 … {n_rows - 1} (the prompt has {prompt_length} tokens; "
                "a generation has a row for every token but the last)"
            )
    for span in where.spans or ():
        start = span.start + prompt_length if span.start < 0 else span.start
        stop = n_rows if span.stop is None else span.stop + prompt_length if span.stop < 0 else span.stop
        if not 0 <= start < stop or start >= n_rows:
            raise InvalidArgument(f"{what}: span {span.start}:{span.stop} chooses nothing in 0:{n_rows}")


def _check_condition(when: Condition, sites: tuple[Site, ...], model: Bindable, mode: str, where: str) -> None:
    info = model.info
    for site in sites:
        read = Site.parse(when.site) if when.site else site
        if read.name in ATTENTION_SITES:
            raise InvalidArgument(f"{where}: a condition cannot read {read.name}; use z or attn_out")
        if read != site and (read.order is None or site.order is None or read.order > site.order):
            raise InvalidArgument(f"{where}: the condition reads {read}, which is computed after {site}")
        widths = _offered((read,), model, mode, where).at(read.layer)
        if read.layer is not None and not 0 <= read.layer < info.n_layers:
            raise InvalidArgument(f"{where}: the condition's {read} is outside layers 0 … {info.n_layers - 1}")
        _check_condition_part(when, read, widths, where)


def _check_condition_part(when: Condition, read: Site, widths: tuple[int, ...], where: str) -> None:
    if (read.name in HEAD_SITES) != (when.head is not None):
        need = "needs a head" if read.name in HEAD_SITES else "has no heads"
        raise InvalidArgument(f"{where}: the condition's site {read} {need}")
    if read.name not in HEAD_SITES and widths[1:]:
        raise InvalidArgument(
            f"{where}: a condition reads one vector a row, and rows of {read} are {list(widths)}; read a named site, such "
            f"as q or k, whose heads a condition can name"
        )
    if when.head is not None and when.head >= widths[0]:
        raise InvalidArgument(f"{where}: the condition's head {when.head} is outside 0 … {widths[0] - 1}")
    if when.unit is not None and when.unit >= widths[-1]:
        raise InvalidArgument(f"{where}: the condition's unit {when.unit} is outside 0 … {widths[-1] - 1}")
    if when.direction is not None and when.direction.shape[0] != widths[-1]:
        raise InvalidArgument(
            f"{where}: the condition's direction is {when.direction.shape[0]} wide, {read} is {widths[-1]} wide"
        )


def _check_edit(edit: Edit, site: Site, offered: SiteInfo, widths: tuple[int, ...], where: str) -> None:
    name = edit_name(edit)
    if name not in offered.edits:
        allowed = ", ".join(offered.edits) or "none (captures only)"
        raise InvalidArgument(f"{where}: {name} is not possible at {site.name}; allowed here: {allowed}")
    if edit.heads is not None and site.name not in HEAD_SITES:
        raise InvalidArgument(f"{where}: {site.name} has no heads; leave out heads (or use units)")
    if site.name in ATTENTION_SITES:
        _check_key_edit(edit, widths, where)
    if edit.heads is not None and max(edit.heads) >= widths[0]:
        raise InvalidArgument(f"{where}: head {max(edit.heads)} is outside 0 … {widths[0] - 1}")
    if edit.units is not None and widths[-1] and max(edit.units) >= widths[-1]:
        raise InvalidArgument(f"{where}: unit {max(edit.units)} is outside 0 … {widths[-1] - 1}")
    width = len(edit.units) if edit.units is not None else widths[-1]
    n_heads = (len(edit.heads) if edit.heads is not None else widths[0]) if site.name in HEAD_SITES else None
    if width:
        _check_widths(edit, width, n_heads, widths, where)


def _check_key_edit(edit: Edit, widths: tuple[int, ...], where: str) -> None:
    if isinstance(edit, Add) and edit.units is None:
        raise InvalidArgument(
            f"{where}: add at attention sites needs units (key positions), the key axis has no fixed width"
        )
    if isinstance(edit, Add) and edit.norm_match:
        raise InvalidArgument(f"{where}: norm_match has no meaning at attention sites (masked scores are infinite)")
    if isinstance(edit, Clamp) and edit.directions is not None:
        raise InvalidArgument(f"{where}: clamp at attention sites takes no directions, the key axis has no fixed width")
    if isinstance(edit, Replace):
        _check_key_rows(edit, widths[0] if edit.heads is None else len(edit.heads), where)


def _check_key_rows(edit: Replace, n_heads: int, where: str) -> None:
    source, n_keys = edit.source, None if edit.units is None else len(edit.units)
    if isinstance(source, Constant) and n_keys is None and (source.value.shape or edit.takes_out):
        raise InvalidArgument(
            f"{where}: replace.constant at attention sites needs units (key positions), the key axis has no fixed width"
        )
    if isinstance(source, Inline):
        shape = source.value.shape
        if len(shape) != 3 or shape[0] != n_heads or shape[2] != (n_keys or shape[2]):
            keys = "keys" if n_keys is None else n_keys
            raise InvalidArgument(
                f"{where}: replace.inline rows have shape {list(shape)}, here it must be [{n_heads} heads, queries, {keys}]"
            )


def _check_widths(edit: Edit, width: int, n_heads: int | None, widths: tuple[int, ...], where: str) -> None:
    if isinstance(edit, Add):
        _check_vector(edit.vector, width, n_heads, f"{where}: add.vector")
    elif isinstance(edit, (ProjectOut, Clamp)) and edit.directions is not None:
        if edit.directions.shape[-1] != width:
            raise InvalidArgument(
                f"{where}: directions are {edit.directions.shape[-1]} wide, the site's part is {width} wide"
            )
        if isinstance(edit, Clamp) and len(edit.directions.shape) == 2 and edit.directions.shape[0] > width:
            raise InvalidArgument(
                f"{where}: {edit.directions.shape[0]} directions in a space of {width}; send at most {width}"
            )
    elif isinstance(edit, Affine):
        if edit.a.shape[0] != width:
            raise InvalidArgument(
                f"{where}: affine.a takes rows {edit.a.shape[0]} wide, the site's part is {width} wide"
            )
    elif isinstance(edit, LowRank):
        flat = widths[0] * widths[1] if len(widths) == 2 else widths[0]
        if edit.b.shape[1] != flat:
            raise InvalidArgument(f"{where}: low_rank.b is {edit.b.shape[1]} wide, the site is {flat} wide")
    elif isinstance(edit, Replace):
        if isinstance(edit.source, Constant):
            if edit.source.value.shape:
                _check_vector(edit.source.value, width, n_heads, f"{where}: replace.constant.value")
        elif isinstance(edit.source, Inline) and widths[-1]:  # at attention sites keys are checked on their own
            expected = (*widths[:-1], width) if n_heads is None else (n_heads, width)
            if edit.source.value.shape[1:] != expected:
                raise InvalidArgument(
                    f"{where}: replace.inline rows have shape {list(edit.source.value.shape[1:])}, the site's part has {list(expected)}"
                )
    elif isinstance(edit, Noise):
        return


def _check_read(edit: LowRank, sites: tuple[Site, ...], points: Points, where: str) -> None:
    """What a linear site's module reads must be as wide as `low_rank.a` takes."""
    for site in sites:
        width = points.read_width(site)
        if width and edit.a.shape[0] != width:
            raise InvalidArgument(
                f"{where}: low_rank.a takes rows {edit.a.shape[0]} wide, but the module of {site} reads rows {width} wide"
            )


def _check_vector(vector: Tensor, width: int, n_heads: int | None, what: str) -> None:
    allowed = [(width,)] if n_heads is None else [(width,), (n_heads, width)]
    if vector.shape not in allowed:
        names = " or ".join(str(list(shape)) for shape in allowed)
        raise InvalidArgument(f"{what} has shape {list(vector.shape)}; this site's part needs {names}")


def _check_capture(
    capture: Capture, site: Site, widths: tuple[int, ...], mode: str, conditional: bool, where: str
) -> None:
    reduce = capture.reduce
    if isinstance(reduce, NextLogprob) and site.name != "logits":
        raise InvalidArgument(f"{where}: next_logprob reads logits, not {site.name}")
    if capture.gradient:
        _check_gradient(capture, site, mode, conditional, where)
    if isinstance(reduce, NextLogprob) and (capture.before or conditional):
        raise InvalidArgument(
            f"{where}: next_logprob is of the edited distribution of every row; leave out before and when"
        )
    if capture.store and site.name in ATTENTION_SITES and mode == "generate":
        raise InvalidArgument(f"{where}: {site.name} of a generation has a growing key axis; store it in a run")
    if reduce is not None and site.name in ATTENTION_SITES:
        raise InvalidArgument(
            f"{where}: {site.name} cannot be reduced, its key axis has no fixed width; capture it whole"
        )
    if isinstance(reduce, Gather) and max(reduce.ids) >= widths[-1]:
        what = "token id" if site.name == "logits" else "unit"
        raise InvalidArgument(f"{where}: {what} {max(reduce.ids)} is outside 0 … {widths[-1] - 1}")
    asked = reduce.k if isinstance(reduce, TopK) else reduce.top if isinstance(reduce, NextLogprob) else 0
    if asked > widths[-1]:
        raise InvalidArgument(f"{where}: the top {asked} at a site {widths[-1]} wide; at most {widths[-1]}")
    if isinstance(reduce, Project) and reduce.directions.shape[-1] != widths[-1]:
        raise InvalidArgument(
            f"{where}: project directions are {reduce.directions.shape[-1]} wide, the site is {widths[-1]} wide"
        )


def _check_gradient(capture: Capture, site: Site, mode: str, conditional: bool, where: str) -> None:
    if mode != "gradients":
        raise InvalidArgument(f"{where}: capture.gradient is for Gradients requests; this is a {mode}")
    if conditional:
        raise InvalidArgument(f"{where}: a gradient is of every chosen row; leave out when")
    if site.name == "module":
        raise InvalidArgument(f"{where}: raw modules offer no gradients; name a site such as resid_post.3")


def from_input(edit: Edit | None) -> FromInput | None:
    """The other input that an edit reads, if it does."""
    return edit.source if isinstance(edit, Replace) and isinstance(edit.source, FromInput) else None
