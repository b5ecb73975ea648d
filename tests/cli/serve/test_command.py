"""`probewire serve` as a process of its own, over workers that hold pretended models."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from serve_process import DEADLINE_S, ready, started

from probewire.cli.__main__ import main
from probewire.cli.serve.command import check_host, load_requests
from probewire.cli.serve.serving import _listen
from probewire.clients import Client
from probewire.protos.errors import FailedPrecondition, InvalidArgument, Unavailable
from probewire.protos.loading import LoadRequest
from probewire.protos.model import GenerateRequest, Input, Sampling
from probewire.protos.wire.codec import to_proto


def request_bytes(n: int, **script: object) -> bytes:
    """A generation by the fake, whose script is its prompt."""
    request = GenerateRequest((Input(json.dumps(script)),), sampling=Sampling(max_new_tokens=n))
    return to_proto(request).SerializeToString()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_both_apis_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "ready.json"
    with started("a", "b", "--port", "0", "--grpc-port", "0", "--ready-file", str(file)) as process:
        where = ready(process, file)
        assert where["pid"] == process.pid
        assert where["grpc"].startswith("grpc://127.0.0.1:")
        report = httpx.get(f"{where['http']}/health", timeout=DEADLINE_S).json()
        assert report["models"] == {"a": "ready", "b": "ready"}
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output
        assert f"REST and OpenAI  {where['http']}" in output
        assert "Traceback" not in output
        assert [worker for worker in workers if worker.is_running()] == []


def test_a_bad_model_among_several_is_named_and_the_others_serve(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    with started("good", "bad=fake/broken", "--port", "0", "--grpc-port", "0", "--ready-file", str(file)) as process:
        where = ready(process, file)
        assert where["failed"] == {"bad": "config.json is no model's"}
        listed = httpx.get(f"{where['http']}/v1/models", timeout=DEADLINE_S).json()
        assert [model["id"] for model in listed["data"]] == ["good"]
        assert listed["failed"] == {"bad": "config.json is no model's"}
        described = httpx.get(f"{where['http']}/v1/models/bad", timeout=DEADLINE_S)
        with grpc.insecure_channel(where["grpc"].removeprefix("grpc://")) as channel:
            start = channel.unary_stream("/probewire.v1.Inference/Generate")
            assert next(start(request_bytes(n=2))), "the only model that serves needs no name"
            asked = GenerateRequest((Input("{}"),), sampling=Sampling(max_new_tokens=2), model="bad")
            with pytest.raises(grpc.RpcError) as refused:
                next(start(to_proto(asked).SerializeToString()))
        for told in (described.text, str(refused.value)):
            assert "model 'bad' failed: config.json is no model's; unload it, or load it again" in told
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, output
        assert "model bad failed: config.json is no model's" in output
        assert "  bad   COULD NOT BE LOADED: config.json is no model's" in output


def test_where_no_model_loads_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    with started("fake/broken", "b=fake/bug", "--port", "0", "--grpc-port", "0", "--ready-file", str(file)) as process:
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 2, output
        assert "probewire: config.json is no model's" in output
        assert "model b failed: loading 'fake/bug' failed: RuntimeError: out of memory" in output
    assert not file.exists()


def test_it_lets_requests_finish_and_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    with started("a", "--port", "0", "--grpc-port", "0", "--drain", "60", "--ready-file", str(file)) as process:
        address = ready(process, file)["grpc"].removeprefix("grpc://")
        (worker,) = psutil.Process(process.pid).children()
        with grpc.insecure_channel(address) as channel:
            start = channel.unary_stream("/probewire.v1.Inference/Generate")
            short, long = start(request_bytes(n=20, interval_s=0.05)), start(request_bytes(n=100_000, interval_s=0.05))
            assert next(short)
            assert next(long)
            process.terminate()
            assert len(list(short)) == 21
            assert process.poll() is None
            process.terminate()
            assert process.wait(DEADLINE_S) == 1
        worker.wait(DEADLINE_S)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_send_what_they_have_at_once(host: str) -> None:
    """Else a body waits behind its headers, and a token behind the one before, for the caller's delayed ACK."""
    with _listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2]), listener.accept()[0] as it:
        assert it.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        for option, other in (("--port", "--grpc-port"), ("--grpc-port", "--port")):
            with started("a", option, str(port), other, "0") as process:
                output, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 2
            (line,) = output.splitlines()
            assert line.startswith(f"probewire: cannot listen on 127.0.0.1:{port}: the port is in use")


def test_a_model_that_cannot_load_is_one_clear_line() -> None:
    with started("fake/broken", "--port", "0", "--grpc-port", "0") as process:
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert output.rstrip().splitlines()[-1] == "probewire: config.json is no model's"
    assert "Traceback" not in output


def test_it_can_be_stopped_while_a_model_loads() -> None:
    with started("fake/slow", "--port", "0", "--grpc-port", "0") as process:
        assert process.stdout is not None
        while "read weights" not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([], [LoadRequest("", "SmolLM2-135M-Instruct")]),
        (["org/m"], [LoadRequest("org/m", "org/m")]),
        (["org/m@mlx"], [LoadRequest("org/m", "org/m", "mlx")]),
        (["x=org/m@torch"], [LoadRequest("org/m", "x", "torch")]),
        (["/a=b/c@d"], [LoadRequest("/a=b/c@d", "/a=b/c@d")]),
        (["m@torch", "m@mlx"], [LoadRequest("m", "m@torch", "torch"), LoadRequest("m", "m@mlx", "mlx")]),
    ],
)
def test_models_are_named_by_id_and_backend(models: list[str], expected: list[LoadRequest]) -> None:
    assert load_requests(models) == expected


def test_two_models_under_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="ID=MODEL or MODEL@BACKEND"):
        load_requests(["m", "m"])


def test_what_is_quantised_at_load_says_so_in_its_name() -> None:
    assert load_requests(["m@torch", "m@mlx", "mine=m"], "int8") == [
        LoadRequest("m", "m-int8@torch", "torch", quantize="int8"),
        LoadRequest("m", "m-int8@mlx", "mlx", quantize="int8"),
        LoadRequest("m", "mine", quantize="int8"),
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_clients_of_a_server_that_ends_are_told_the_truth(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "ready.json"
    options = ("--port", "0", "--grpc-port", "0", "--drain", "0.1", "--state", str(tmp_path / "state"))
    with started("fake", *options, "--ready-file", str(file)) as process:
        where = ready(process, file)
        clients = [Client(where[api], timeout_s=DEADLINE_S) for api in ("grpc", "http")]
        streams = [client.stream('{"interval_s": 0.05}', max_new_tokens=10_000) for client in clients]
        for stream in streams:
            next(stream)
        process.send_signal(number)
        for client, stream in zip(clients, streams, strict=True):
            with pytest.raises(
                Unavailable, match=f"the connection to {client.address} broke .* send the request again"
            ):
                list(stream)
        process.wait()
        for client in clients:
            with pytest.raises(Unavailable) as refusal:
                client.models()
            if "send the request again" in str(refusal.value):  # it was written before the socket was seen to be closed
                with pytest.raises(Unavailable) as refusal:
                    client.models()
            refusal.match(f"no connection to {client.address} .* start a server with")
            client.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.9", "::1", "[::1]", "::ffff:127.0.0.1", "localhost", "LocalHost"]
)
def test_this_machine_needs_no_flag(host: str) -> None:
    check_host(host, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "box.example"])  # noqa: S104  nothing binds here
def test_any_other_address_needs_insecure(host: str) -> None:
    with pytest.raises(FailedPrecondition, match="pass --insecure"):
        check_host(host, insecure=False)
    check_host(host, insecure=True)


def test_an_error_of_ours_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 2  # noqa: S104  it is refused
    captured = capsys.readouterr()
    assert captured.err.startswith("probewire: --host 0.0.0.0 would let anyone")
    assert captured.err.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("probewire ")
