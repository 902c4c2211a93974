"""The gRPC messages are the published ones, field by field; tritonclient's are the other side."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from app.api.grpc import open_inference_pb2 as pb


def published(name: str) -> Any:
    held = service_pb2 if name in service_pb2.DESCRIPTOR.message_types_by_name else model_config_pb2
    return held.DESCRIPTOR.message_types_by_name[name]


def shape_of(field: FieldDescriptor) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.type, field.is_repeated, kind.full_name if kind else None, oneof


def check_messages(ours: Descriptor, theirs: Descriptor) -> None:
    for name, field in ours.fields_by_name.items():
        assert shape_of(field) == shape_of(theirs.fields_by_name[name]), field.full_name
    for name, nested in ours.nested_types_by_name.items():
        check_messages(nested, theirs.nested_types_by_name[name])
    for name, values in ours.enum_types_by_name.items():
        assert numbers(values) == numbers(theirs.enum_types_by_name[name])


def numbers(values: EnumDescriptor) -> dict[str, int]:
    return {name: value.number for name, value in values.values_by_name.items()}


@pytest.mark.parametrize("name", sorted(pb.DESCRIPTOR.message_types_by_name))
def test_every_field_of_a_message_is_the_published_one(name: str) -> None:
    check_messages(pb.DESCRIPTOR.message_types_by_name[name], published(name))


@pytest.mark.parametrize("name", [name for name in sorted(pb.DESCRIPTOR.message_types_by_name) if "Infer" in name])
def test_the_messages_of_inference_lack_no_field(name: str) -> None:
    assert pb.DESCRIPTOR.message_types_by_name[name].fields_by_name.keys() == published(name).fields_by_name.keys()


def test_methods_and_datatypes_are_the_published_ones() -> None:
    ours = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert ours.full_name == theirs.full_name
    for name, method in ours.methods_by_name.items():
        same = theirs.methods_by_name[name]
        assert (method.input_type.full_name, method.output_type.full_name, method.client_streaming) == (
            same.input_type.full_name,
            same.output_type.full_name,
            same.client_streaming,
        )
    datatypes = pb.DESCRIPTOR.enum_types_by_name["DataType"]
    assert numbers(datatypes) == numbers(model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"])
