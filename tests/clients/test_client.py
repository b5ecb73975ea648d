"""The same calls over every transport give the same results."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from fake_server import FakeServer, wait_for
from fake_service import FakeService, expected

from probewire import clients
from probewire.clients import (
    Client,
    DeadlineExceeded,
    Generation,
    Input,
    InvalidArgument,
    LogProb,
    Message,
    NotFound,
    Run,
    TopK,
    Unavailable,
    ablate,
    capture,
    patch,
    steer,
)
from probewire.protos.errors import Code, FailedPrecondition, error_from_code


def test_run_gives_arrays_by_site(client: Client) -> None:
    run = client.run("abc", capture=["resid_post.*", "logits"])
    assert isinstance(run, Run)
    assert run["resid_post.1"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(run["resid_post.1"], expected("resid_post.1", [97, 98, 99]))
    assert run.positions("resid_post.1") == (0, 1, 2)
    assert run.stack("resid_post").shape == (3, 3, 4)
    assert run["logits"].shape == (3, 256)
    assert run["blocks.1.hook_resid_post"] is run["resid_post.1"]
    assert run.token_ids == (97, 98, 99)
    assert run.tokens == ("a", "b", "c")


def test_generate_without_hooks(client: Client) -> None:
    result = client.generate("abc", max_new_tokens=3)
    assert isinstance(result, Generation)
    assert result.text == "def"
    assert result.tokens == ("a", "b", "c", "d", "e", "f")
    assert result.finish_reason == "length"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (3, 3)
    assert result.tokens_per_s == pytest.approx(6.0)
    assert result.logprobs is None
    assert result.sites == ()


def test_captures_of_a_generation_are_joined_over_steps(client: Client) -> None:
    result = client.generate_with_activations("abc", ["resid_post.*"], max_new_tokens=3)
    # a row for every token but the last sampled one
    np.testing.assert_array_equal(result["resid_post.2"], expected("resid_post.2", [97, 98, 99, 100, 101]))
    assert result.positions("resid_post.2") == (0, 1, 2, 3, 4)


def test_steering_changes_text_and_what_later_captures_see(client: Client) -> None:
    hooks = [steer("resid_post.0", np.array([1.0, 0, 0, 0]), alpha=2)]
    result = client.generate("abc", hooks=hooks, capture="resid_post.0", max_new_tokens=2)
    assert result.text == "fi"
    assert result["resid_post.0"][0].tolist() == [99, 97, 97, 97]


def test_several_inputs(client: Client) -> None:
    run = client.run({"clean": "ab", "other": [99, 100, 101]}, capture="embed")
    assert list(run.inputs) == ["clean", "other"]
    assert run.inputs["other"]["embed"].shape == (3, 4)
    with pytest.raises(InvalidArgument, match=r"inputs clean, other; name one: result\.inputs\['clean'\]"):
        run["embed"]
    assert list(client.run(["ab", "c"], capture="embed").inputs) == ["0", "1"]


def test_source_only_inputs_have_no_text(client: Client) -> None:
    inputs = {"a": "ab", "b": Input(text="c", source_only=True)}
    result = client.generate(inputs, hooks=patch("embed", from_input="b", positions=0, inputs="a"), max_new_tokens=1)
    assert result.inputs["a"].text == "c"
    assert result.inputs["b"].finished is None


def test_messages_and_options_reach_the_server(client: Client, service: FakeService) -> None:
    client.generate(
        [{"role": "user", "content": "hi"}], max_new_tokens=2, temperature=0.5, top_p=0.9, top_k=3, seed=11, stop="zz"
    )
    request = service.requests[-1]
    assert request.inputs[0].messages == (Message("user", "hi"),)
    sampling = request.sampling  # pyright: ignore[reportAttributeAccessIssue] - it is a GenerateRequest
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, sampling.stop) == (
        0.5,
        0.9,
        3,
        11,
        ("zz",),
    )


def test_logprobs_and_stop(client: Client) -> None:
    result = client.generate("a", max_new_tokens=9, logprobs=2, stop=["d"])
    assert result.text == "bc"
    assert result.finish_reason == "stop"
    assert result.logprobs is not None
    np.testing.assert_allclose(result.logprobs, [-0.5, -1.0, -1.5])
    assert [top.text for top in result.only.new[0].top] == ["A", "B"]


def test_generate_with_activations_refuses_to_capture_nothing(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="captures nothing; name sites: capture="):
        client.generate_with_activations("abc", hooks=ablate("mlp_out.0"))


def test_reductions_and_parts(client: Client) -> None:
    hooks = [capture("resid_post.0", reduce="mean", id="m"), capture("mlp_act.0", reduce=TopK(2), id="t")]
    result = client.generate("ab", capture=hooks, max_new_tokens=2)
    assert result["m"].tolist() == [[98.0] * 4]  # of 97, 98, 99
    assert result.positions("m") == ()
    values, indices = result.captures.top_k("mlp_act.0")
    assert values.shape == indices.shape == (3, 2)
    with pytest.raises(InvalidArgument, match="has the parts value, index"):
        result["mlp_act.0"]


def test_weights(client: Client) -> None:
    names = client.weight_names()
    assert names["embed.weight"] == (256, 4)
    big = client.weights("big.weight", progress=False)  # several messages
    assert (big.dtype, big.shape) == (ml_dtypes.bfloat16, (1500, 1000))
    assert float(big[1, 5]) == pytest.approx(1005, rel=1e-2)
    assert not big.flags.writeable
    with pytest.raises(NotFound, match="no weight 'nope'"):
        client.weights("nope")
    with pytest.raises(InvalidArgument, match=r"weights takes one name, .* not list; for several"):
        client.weights(cast("Any", ["embed.weight"]))
    with pytest.raises(NotFound, match="weight_names"):
        client.weights("")


def test_models(client: Client) -> None:
    assert [info.id for info in client.models()] == ["fake"]
    info = client.describe()
    assert info.site("resid_post") is not None
    assert info.versions == {"numpy": np.__version__}
    assert client.describe("fake") == info
    with pytest.raises(NotFound, match="no model 'other'"):
        client.describe("other")
    assert client.load("fake", progress=False) == info
    client.unload("fake")
    assert client.tokenize("ab").token_ids == (97, 98)
    health = client.health()
    assert (health.ready, health.detail, health.models) == (True, "all well", {"fake": "ready"})


def test_stored_captures(client: Client, service: FakeService) -> None:
    run = client.run("ab", capture=capture("resid_post.1", store=True))
    [kept] = run.stored
    assert (kept.site, kept.positions) == ("resid_post.1", (0, 1))
    assert client.captures() == [kept]
    np.testing.assert_array_equal(client.capture(kept.id), expected("resid_post.1", [97, 98]))
    client.delete_capture(kept.id)
    with pytest.raises(NotFound):
        client.capture(kept.id)


@pytest.mark.parametrize("code", list(Code))
def test_every_error_comes_back_as_itself(client: Client, code: Code) -> None:
    with pytest.raises(type(error_from_code(code, ""))) as caught:
        client.generate(f"fail:{code.name}")
    assert caught.value.message == f"told to fail with {code.name}: ‖h‖"
    assert caught.value.retry_after_s is None


def test_the_retry_hint_comes_back(client: Client) -> None:
    with pytest.raises(clients.ResourceExhausted) as caught:
        client.generate("fail:RESOURCE_EXHAUSTED:2.5")
    assert caught.value.retry_after_s == 2.5


def test_unknown_options_are_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"unknown options \['max_tokens'\]; allowed: max_new_tokens"):
        client.generate("a", max_tokens=3)  # pyright: ignore[reportCallIssue] - wrong on purpose


def test_a_path_that_is_none(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"path is an IntegratedPath .* got \['resid_post.0'\]"):
        client.gradients("a", LogProb(1), path=["resid_post.0"])


def test_grpc_to_a_port_that_speaks_http(server: FakeServer) -> None:
    with (
        Client(server.http_url.replace("http", "grpc"), timeout_s=20) as client,
        pytest.raises(Unavailable, match="it speaks HTTP: write http://"),
    ):
        client.models()


def test_large_captures_cross_whole(client: Client) -> None:
    run = client.run([65] * 5000, capture="logits")  # 2.5 MB, in pieces
    assert run["logits"].shape == (5000, 256)
    assert (run["logits"] == 65).all()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("[::1]", True), ("[::ffff:127.0.0.1]", True), ("LOCALHOST", True), ("[::2]", False)],
)
def test_which_servers_are_on_this_machine(scheme: str, host: str, here: bool) -> None:
    with Client(f"{scheme}://{host}:1") as client:
        assert client.is_here is here


def test_nobody_there() -> None:
    for url in ("grpc://127.0.0.1:1", "http://127.0.0.1:1"):
        with Client(url) as client, pytest.raises(Unavailable) as caught:
            client.models()
        assert f"no connection to {url}" in caught.value.message
        assert "probewire serve" in caught.value.message


def test_a_deadline(server: FakeServer, service: FakeService) -> None:
    service.step_s = 0.2
    for url in (server.grpc_url, server.http_url):
        with Client(url, timeout_s=0.5) as client, pytest.raises(DeadlineExceeded, match=r"timeout_s=0\.5"):
            client.generate("a", max_new_tokens=50)
        assert wait_for(service.cancelled.is_set)
        service.cancelled.clear()


def test_a_closed_client(server: FakeServer) -> None:
    for url in (server.grpc_url, server.http_url):
        client = Client(url)
        client.models()
        client.close()
        with pytest.raises(FailedPrecondition, match="is closed; make a new Client"):
            client.models()
        with pytest.raises(FailedPrecondition, match="is closed"):
            client.generate("a")


def test_two_threads_share_a_client(client: Client) -> None:
    found: dict[str, str] = {}

    def work(prompt: str) -> None:
        found[prompt] = client.generate(prompt, max_new_tokens=20).text

    threads = [threading.Thread(target=work, args=(p,)) for p in ("a", "k")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"a": "bcdefghijklmnopqrstu", "k": "lmnopqrstuvwxyz{|}~\x7f"}


@pytest.mark.parametrize(
    "url", ["", "localhost:50051", "ftp://x", "grpc://", "grpc://h/path", "http://h:99999", "http://h?x=1"]
)
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        Client(url)


def test_default_ports() -> None:
    assert Client("grpc://box").address == "grpc://box:50051"
    assert Client("https://box/llm/").address == "https://box:443/llm"
    assert repr(Client("grpc://[::1]:7")) == "Client('grpc://[::1]:7')"


def test_a_service_that_is_none() -> None:
    with pytest.raises(InvalidArgument, match=r"dict is not a protos\.service\.Service; it lacks generate"):
        Client(service={})


def test_closing_an_inprocess_client_closes_the_service() -> None:
    service = FakeService()
    with Client.inprocess(service) as client:
        client.health()
    assert service.closed


def test_a_fault_in_an_inprocess_service_is_internal() -> None:
    service = FakeService()
    service.models = lambda: 1 / 0  # pyright: ignore[reportAttributeAccessIssue] - wrong on purpose
    with pytest.raises(clients.Internal, match="ZeroDivisionError"):
        Client(service=service).models()


def test_the_api_key_is_sent(server: FakeServer, service: FakeService) -> None:
    for url in (server.grpc_url, server.http_url):
        with Client(url, api_key="secret") as client:
            assert client.health().ready  # the APIs take and, so far, ignore it


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, probewire.clients as c\n"
        "missing = [n for n in c.__all__ if not hasattr(c, n)]\n"
        "assert not missing, missing\n"
        "assert list(c.__all__) == sorted(c.__all__)\n"
        "print([m for m in ('torch', 'mlx', 'fastapi', 'transformers', 'probewire.server') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_slow_reader_still_gets_everything(client: Client) -> None:
    with client.stream("a", capture="logits", max_new_tokens=30) as stream:
        sizes = []
        for step in stream:
            time.sleep(0.001)
            sizes.append(step["logits"].shape)
    assert len(sizes) == 30
