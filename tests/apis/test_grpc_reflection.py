"""What grpcurl does: it knows no .proto file, asks the server for one, and calls with what it learnt."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2 as rpb, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.apis.serving import DEADLINE_S, Served

SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "probewire.v1.Captures",
    "probewire.v1.Saes",
    "probewire.v1.Inference",
    "probewire.v1.Models",
    "probewire.v1.Sessions",
    "probewire.v1.Variants",
    "probewire.v1.Activity",
}


@pytest.fixture
def channel(served: Served) -> grpc.Channel:
    return served.channel


def asked(channel: grpc.Channel, **question: str) -> Any:
    """One question on the reflection stream."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # not annotated
    [answer] = stub.ServerReflectionInfo(iter([rpb.ServerReflectionRequest(**question)]), timeout=DEADLINE_S)
    return answer


def test_it_lists_the_services(channel: grpc.Channel) -> None:
    """`grpcurl -plaintext HOST list`."""
    listed = asked(channel, list_services="")
    assert {service.name for service in listed.list_services_response.service} == SERVICES


def test_it_describes_a_service(channel: grpc.Channel) -> None:
    """`grpcurl -plaintext HOST describe probewire.v1.Inference`."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    methods = {
        service: [method.name for method in pool.FindServiceByName(service).methods]
        for service in SERVICES
        if service.startswith("probewire")
    }
    assert methods == {
        "probewire.v1.Captures": ["Get", "List", "Delete"],
        "probewire.v1.Saes": ["Load", "Send", "List", "Unload"],
        "probewire.v1.Inference": ["Generate", "Run", "Gradients", "Sweep"],
        "probewire.v1.Models": ["List", "Load", "Unload", "Describe", "Tokenize", "Tokenizer", "Weights"],
        "probewire.v1.Sessions": ["Create", "Update", "Get", "List", "Delete"],
        "probewire.v1.Variants": ["Load", "Send", "List", "Get", "Read", "Unload"],
        "probewire.v1.Activity": ["Get"],
    }
    unknown = asked(channel, file_containing_symbol="probewire.v1.Nothing")
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def called(channel: grpc.Channel, method: str, request: str) -> list[dict[str, Any]]:
    """`grpcurl -plaintext -d REQUEST HOST SERVICE/METHOD`: JSON in and out, by the descriptors alone."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, name = method.split("/")
    found = pool.FindServiceByName(service).FindMethodByName(name)
    message = json_format.Parse(request, GetMessageClass(found.input_type)())
    call = channel.unary_stream(
        f"/{method}", GetMessageClass(found.input_type).SerializeToString, GetMessageClass(found.output_type).FromString
    )
    return [json_format.MessageToDict(answer) for answer in call(message, timeout=DEADLINE_S)]


def test_it_can_be_called_by_what_it_says(channel: grpc.Channel) -> None:
    [described] = called(channel, "probewire.v1.Models/Describe", '{"model": "mlx"}')
    assert (described["backend"], described["family"], described["nLayers"]) == ("mlx", "llama", "3")
    request = """{
        "model": "torch", "inputs": [{"name": "input", "text": "When Mary"}], "sampling": {"maxNewTokens": "2"},
        "plan": {"hooks": [{"site": "resid_post.1", "capture": {}}]}
    }"""
    messages = called(channel, "probewire.v1.Inference/Generate", request)
    events = [event for message in messages for event in message["events"]]
    assert [kind for event in events for kind in event] == [
        "started",
        *("tensorFrame", "token") * 2,
        "finished",
    ]


@pytest.mark.parametrize("service", ["", "probewire.v1.Inference", "torch", "mlx"])
def test_health(channel: grpc.Channel, service: str) -> None:
    """`grpc_health_probe`: the whole server, a service, or one model."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_nothing_and_a_watch(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="gpt-0"), timeout=DEADLINE_S)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="torch"), timeout=DEADLINE_S)
    assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
