"""What docs/operating.md says in tables is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from probewire.backends.model import chunk
from probewire.backends.model.limits import Limits
from probewire.cli.serve import http
from probewire.protos.metrics import MAX_TARGETS
from probewire.protos.model import MAX_INPUTS
from probewire.protos.spec import MAX_HOOKS
from probewire.protos.sweeps import MAX_PLANS
from probewire.protos.variants.limits import MAX_RANK
from probewire.server.api.grpc.service import SERVICES
from probewire.server.api.http import body as rest_body
from probewire.server.api.neuroscope import hooks as neuroscope_hooks
from probewire.server.auth import access, audit
from probewire.server.auth.users import ROLES, UserLimits
from probewire.server.config import GatewayConfig, RequestLimits
from probewire.server.gateway.request_policy import PERMITTED
from probewire.server.state.uploads import MAX_UPLOADS
from probewire.server.worker.input.sweep import MAX_FORWARDS

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
USER, BOX, ENGINE, GATEWAY = UserLimits(), RequestLimits(), Limits(), GatewayConfig()

LIMITS = {
    "generations, runs, gradients and sweeps under way": f"{USER.requests}",
    "stored captures, MiB; SAEs and variants together as much again": f"{USER.store_bytes >> 20:,}",
    "live sessions": f"{USER.sessions}",
    "hooks registered in NeuroScope's dialect": f"{neuroscope_hooks.MAX_HOOKS:,}",
    "generations at once, a model": f"{ENGINE.n_slots}",
    "prompt and new tokens of one input": f"{ENGINE.context_tokens:,}",
    "positions of KV cache, a model": f"{ENGINE.cache_tokens:,}",
    "prompt tokens in one forward": f"{chunk.LEAST} to {chunk.MOST}, found at load",
    "prompt tokens of one input": f"{BOX.max_prompt_tokens:,}",
    "new tokens of one input": f"{BOX.max_new_tokens:,}",
    "one request, MiB": f"{BOX.max_request_bytes >> 20}",
    "stored captures of all users, MiB": f"{BOX.max_store_bytes >> 20:,}",
    "days a capture is kept": f"{BOX.store_ttl_s // 86400}",
    "SAEs of one user": f"{BOX.max_saes}",
    "weights of one SAE": f"{BOX.max_sae_bytes >> 30} GiB",
    "variants of one user / of all, versions counted": f"{BOX.max_variants} / {BOX.max_all_variants:,}",
    "files of one variant / rank at one weight": f"{BOX.max_variant_bytes >> 30} GiB / {MAX_RANK}",
    "variants' factors kept on the device beside those at work, MiB": f"{ENGINE.variant_bytes >> 20:,}",
    "files that a user has sent and not loaded": f"{MAX_UPLOADS} / 1 h",
    "inputs waiting, a model": f"{BOX.max_queued}",
    "seconds an input waits for its turn": f"{BOX.max_wait_s}",
    "models": f"{GATEWAY.max_models}",
    "tensor bytes that one request sends back": f"{BOX.max_capture_bytes >> 30} GiB",
    "inputs / targets of a request": f"{MAX_INPUTS} / {MAX_TARGETS}",
    "hooks of a plan": f"{MAX_HOOKS:,}",
    "plans of a sweep / plans × measured inputs": f"{MAX_PLANS:,} / {MAX_FORWARDS:,}",
    "HTTP connections": f"{http.MAX_CONNECTIONS:,}",
    "seconds for the head of an HTTP request / for a request to arrive": f"{http.HEAD_S:g} / {rest_body.BODY_S:g}",
    "wrong keys from one address in a minute": f"{access.MAX_FAILURES}",
}


def test_the_table_of_roles_is_what_the_desk_permits() -> None:
    table = PAGE.partition("| operation | viewer | researcher | admin |")[2].partition("\n\n")[0]
    said: dict[str, set[str]] = {role: set() for role in ROLES}
    for row in table.splitlines()[2:]:
        operations, *ticks = (cell.strip() for cell in row.strip("|").split("|"))
        for role, tick in zip(("viewer", "researcher", "admin"), ticks, strict=True):
            said[role] |= set(re.findall(r"`(\w+\.\w+)`", operations)) if tick == "✓" else set()
    assert said == {role: set(found) for role, found in PERMITTED.items()}
    services = {name.rpartition(".")[2] for name in SERVICES} - {"Worker"}
    assert {operation.partition(".")[0] for operation in PERMITTED["admin"]} == services


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_is_as_the_table_says(what: str) -> None:
    [row] = re.findall(rf"^\| {re.escape(what)}(?:[ ,;(][^|]*)? \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert row.strip() == LIMITS[what]


def test_prompts_in_the_audit_are_cut_where_it_says() -> None:
    cut = f"cut after {audit.MAX_CHARS:,} characters, {audit.MAX_MESSAGES} messages or {audit.MAX_IDS:,} ids"
    assert cut in PAGE
