"""What `print(client.describe())` shows."""

from __future__ import annotations

import re
from dataclasses import replace

from probewire.protos.model import LayerWidths, ModelInfo, SiteInfo
from probewire.protos.wire.codec import from_proto, to_proto

EDITS = ("add", "scale", "replace", "clamp")
SITES = (
    SiteInfo("resid_pre", ("pos", "d_model"), (64,), (0, 1, 2), True, True, True, EDITS),
    SiteInfo("attn_probs", ("head", "query", "key"), (4, 0), (0, 1, 2), True, False, True, ("add",), "use a run"),
    SiteInfo("attn_scores", ("head", "query", "key"), (4, 0), (0, 1, 2), True, False, True, ("add",), "use a run"),
    SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), True, True, True, EDITS),
    SiteInfo("router_logits", ("pos", "expert"), (8,), (0, 2), True, True, False, EDITS[:3]),
    SiteInfo("logits", ("pos", "vocab"), (50_000,), None, True, True, True, ()),
)
INFO = ModelInfo(
    "tiny/model", "llama", "mistral", "torch", "cpu", "float32", "sdpa", "ab" * 32, 3, 64, 4, 2, 16, 96, 50_000, 8, 512,
    chat_template=True, n_slots=8, rules=("ln", "ah"), sites=SITES, versions={"python": "3.11", "torch": "2.13"},
)  # fmt: skip


def test_a_table_that_one_reads() -> None:
    assert str(INFO).splitlines() == [
        "tiny/model",
        "  model      llama (mistral) · 3 layers · d_model 64 · 4 heads of 16 (2 kv heads) · d_mlp 96 · 8 experts ·",
        "             vocabulary 50,000",
        "  runs on    torch · cpu · float32 · attention sdpa",
        "  context    512 positions a request, prompt and new tokens together",
        "  generate   8 at once, with a chat template",
        "  rules      ln, ah (of gradients)",
        "  versions   python 3.11 · torch 2.13",
        "  hash       " + "ab" * 32,
        "",
        "  sites                               layers  axes                  run  gen  ∂  edits",
        "  resid_pre resid_post                *       pos × d_model 64      ✓    ✓    ✓  all",
        "  attn_probs attn_scores              *       head 4 × query × key  ✓    –    ✓  add",
        "  router_logits                       0, 2    pos × expert 8        ✓    ✓    –  all but clamp",
        "  logits                                      pos × vocab 50000     ✓    ✓    ✓  none",
        "",
        "  all edits  add, scale, replace, clamp",
        "  note       attn_probs, attn_scores: use a run",
        "  layers     resid_post.0 … .2, .* (every one), .-1 (the last), .-2: (the last two)",
    ]
    assert repr(INFO) == str(INFO)


def test_a_model_that_generates_nothing_and_has_no_sites() -> None:
    info = replace(INFO, sites=(), generate=False, generate_note="no cache", rules=(), context_length=0, n_experts=0)
    shown = str(info)
    assert "  generate   no: no cache" in shown
    assert shown.endswith("no named sites: raw modules only, module:<path>:input|output")
    assert "context" not in shown


def test_names_and_lines_stay_narrow() -> None:
    many = tuple(replace(SITES[0], name=f"site_number_{i}") for i in range(40))
    lines = str(replace(INFO, sites=(*many, *SITES), generate=False, generate_note="because " * 60)).splitlines()
    assert max(map(len, lines)) <= 110
    assert sum(name in line for name in ("site_number_0", "site_number_39") for line in lines) == 2


def test_a_site_whose_layers_differ_has_a_row_for_each_size() -> None:
    alike = SiteInfo("z", ("pos", "head", "d_head"), (4, 16), (0, 1, 3))
    site = replace(alike, layer_widths=(LayerWidths((0, 1), (4, 16)), LayerWidths((3,), (2, 32))))
    table = repr(replace(INFO, n_layers=4, sites=(site,)))
    assert re.search(r"z +0:2 +pos × head 4 × d_head 16", table)
    assert re.search(r"z +3 +pos × head 2 × d_head 32", table)
    assert from_proto(SiteInfo, to_proto(site)) == site
    assert [site.at(layer) for layer in (0, 3)] == [(4, 16), (2, 32)]
    # Sites that are alike in all layers are on the wire as they were.
    assert not to_proto(alike).layer_widths
