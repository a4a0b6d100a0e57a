"""Says what in the public protos would break callers of the last release, whose descriptors are `released.binpb`.

``python protos/compatibility.py`` prints every breaking change and ends with 1 if there is one. ``--release`` makes
the sources as they are the released ones: run it when a version is published, never to silence the check.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

from reference import descriptors

RELEASED = Path(__file__).resolve().parent / "released.binpb"


def released() -> list[pb.FileDescriptorProto]:
    """The public files of the last release."""
    return list(pb.FileDescriptorSet.FromString(RELEASED.read_bytes()).file)


def breaking(old: Iterable[pb.FileDescriptorProto], new: Iterable[pb.FileDescriptorProto]) -> list[str]:
    """What callers that were built with the old files would trip over, a line each.

    The rules of Buf's category WIRE_JSON: nothing is removed unless its number and name are reserved, and nothing
    changes its number, name, type or cardinality. New names and numbers break nobody.
    """
    before, after = _definitions(old), _definitions(new)
    problems: list[str] = []
    for name, definition in before.items():
        if name not in after:
            problems.append(f"{name}: is gone")
        elif isinstance(definition, pb.DescriptorProto):
            problems += _message(name, definition, after[name])
        elif isinstance(definition, pb.EnumDescriptorProto):
            problems += _enum(name, definition, after[name])
        else:
            problems += _service(name, definition, after[name])
    return problems


Definition = pb.DescriptorProto | pb.EnumDescriptorProto | pb.ServiceDescriptorProto


def _definitions(files: Iterable[pb.FileDescriptorProto]) -> dict[str, Definition]:
    found: dict[str, Definition] = {}

    def add(scope: str, messages: Iterable[pb.DescriptorProto], enums: Iterable[pb.EnumDescriptorProto]) -> None:
        for enum in enums:
            found[f"{scope}.{enum.name}"] = enum
        for message in messages:
            found[f"{scope}.{message.name}"] = message
            add(f"{scope}.{message.name}", message.nested_type, message.enum_type)

    for file in files:
        add(file.package, file.message_type, file.enum_type)
        found.update({f"{file.package}.{service.name}": service for service in file.service})
    return found


def _message(name: str, old: pb.DescriptorProto, new: Definition) -> Iterator[str]:
    if not isinstance(new, pb.DescriptorProto):
        yield f"{name}: was a message"
        return
    fields = {field.number: field for field in new.field}
    for was in old.field:
        field = fields.get(was.number)
        if field is None:
            reserved = any(r.start <= was.number < r.end for r in new.reserved_range) and was.name in new.reserved_name
            if not reserved:
                yield f"{name}.{was.name}: is gone, and {was.number} and its name are not both reserved"
        elif (field.name, field.type, field.type_name) != (was.name, was.type, was.type_name):
            yield f"{name}.{was.name} = {was.number}: is now {field.name} of another name or type"
        elif (field.label, field.proto3_optional) != (was.label, was.proto3_optional):
            yield f"{name}.{was.name}: is repeated, optional or single now, and was not"
        elif _oneof(new, field) != _oneof(old, was):
            yield f"{name}.{was.name}: has moved into or out of a oneof"


def _oneof(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    if field.proto3_optional or not field.HasField("oneof_index"):
        return ""
    return message.oneof_decl[field.oneof_index].name


def _enum(name: str, old: pb.EnumDescriptorProto, new: Definition) -> Iterator[str]:
    values = {value.number: value.name for value in new.value} if isinstance(new, pb.EnumDescriptorProto) else {}
    for was in old.value:
        if values.get(was.number) != was.name:
            yield f"{name}.{was.name} = {was.number}: is now {values.get(was.number, 'gone')}"


def _service(name: str, old: pb.ServiceDescriptorProto, new: Definition) -> Iterator[str]:
    methods = {m.name: m for m in new.method} if isinstance(new, pb.ServiceDescriptorProto) else {}
    for was in old.method:
        method = methods.get(was.name)
        if method is None:
            yield f"{name}.{was.name}: is gone"
        elif (method.input_type, method.output_type, method.client_streaming, method.server_streaming) != (
            was.input_type,
            was.output_type,
            was.client_streaming,
            was.server_streaming,
        ):
            yield f"{name}.{was.name}: takes or gives something else"


def main() -> int:
    """Check, or release."""
    files = descriptors()
    if sys.argv[1:] == ["--release"]:
        for file in files:
            file.ClearField("source_code_info")
        RELEASED.write_bytes(pb.FileDescriptorSet(file=files).SerializeToString())
        return 0
    problems = breaking(released(), files)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
