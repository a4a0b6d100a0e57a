"""The generated code is what the sources give, and the sources keep the rules that Buf calls STANDARD.

One documented exception: the folder is ``optiq_protos``, because a top-level ``optiq`` would be another project's, so
PACKAGE_DIRECTORY_MATCH holds below it (``optiq.v1`` in ``optiq_protos/v1``).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2] / "protos"
SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.proto"))
SNAKE = re.compile(r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$")
PASCAL = re.compile(r"^[A-Z][A-Za-z0-9]*$")


def protoc(out: Path, *flags: str) -> None:
    """Run the compiler that ``make protos`` runs."""
    from grpc_tools import protoc as compiler

    assert compiler.main(["protoc", f"-I{ROOT}", f"-I{_well_known()}", *flags, *SOURCES]) == 0, out


def _well_known() -> Path:
    import grpc_tools

    return Path(grpc_tools.__file__).parent / "_proto"


def test_generated_code_is_current(tmp_path: Path) -> None:
    protoc(tmp_path, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}")
    made = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*_pb2*.py*")}
    committed = {p.relative_to(ROOT): p.read_text() for p in ROOT.rglob("*_pb2*.py*") if "__pycache__" not in p.parts}
    assert {str(p) for p in committed} <= {str(p) for p in made}, "generated files without a source"
    stale = sorted(str(p) for p, text in committed.items() if made[p] != text)
    assert not stale, f"{', '.join(stale)}: not what the sources give; run `make protos`"
    for source in SOURCES:
        assert Path(source.replace(".proto", "_pb2.py")) in committed, f"{source}: run `make protos`"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    out = tmp_path_factory.mktemp("descriptors") / "set.binpb"
    protoc(out, f"--descriptor_set_out={out}", "--include_source_info")
    found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return [f for f in found if f.name in SOURCES]


def messages(
    holder: descriptor_pb2.FileDescriptorProto | descriptor_pb2.DescriptorProto,
) -> Iterator[descriptor_pb2.DescriptorProto]:
    """All messages, nested ones too; map entries are the compiler's own."""
    inner = holder.message_type if isinstance(holder, descriptor_pb2.FileDescriptorProto) else holder.nested_type
    for message in inner:
        if not message.options.map_entry:
            yield message
            yield from messages(message)


def enums(file: descriptor_pb2.FileDescriptorProto) -> Iterator[descriptor_pb2.EnumDescriptorProto]:
    """All enums, nested ones too."""
    yield from file.enum_type
    for message in messages(file):
        yield from message.enum_type


def upper_snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def test_packages_are_versioned_and_match_the_folder(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in files:
        folder = file.name.rpartition("/")[0]
        assert file.package.replace(".", "/") == folder.replace("optiq_protos", "optiq"), file.name
        assert re.search(r"\.v[0-9]+$", file.package), file.name
        assert SNAKE.match(Path(file.name).stem), file.name
        assert file.syntax == "proto3", file.name
        assert not file.public_dependency, file.name


def test_enums(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in files:
        for enum in enums(file):
            prefix = upper_snake(enum.name) + "_"
            assert PASCAL.match(enum.name), enum.name
            assert enum.value[0].number == 0, enum.name
            assert enum.value[0].name == f"{prefix}UNSPECIFIED", enum.name
            assert not enum.options.allow_alias, enum.name
            for value in enum.value:
                assert value.name.startswith(prefix), value.name
                assert value.name == value.name.upper(), value.name


def test_messages_and_fields(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in files:
        for message in messages(file):
            assert PASCAL.match(message.name), message.name
            for field in message.field:
                assert SNAKE.match(field.name), f"{message.name}.{field.name}"
                assert field.label != field.LABEL_REQUIRED
            for oneof in message.oneof_decl:
                assert SNAKE.match(oneof.name.removeprefix("_")), f"{message.name}.{oneof.name}"


def test_services_and_their_messages(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for package in {f.package for f in files}:
        used: list[str] = []
        for file in (f for f in files if f.package == package):
            for service in file.service:
                assert service.name.endswith("Service"), service.name
                for method in service.method:
                    assert PASCAL.match(method.name), method.name
                    bare = service.name.removesuffix("Service")
                    for kind, name in (("Request", method.input_type), ("Response", method.output_type)):
                        allowed = {f".{package}.{method.name}{kind}", f".{package}.{bare}{method.name}{kind}"}
                        assert name in allowed, f"{service.name}.{method.name}: {name}"
                    used += [method.input_type, method.output_type]
        assert len(used) == len(set(used)), f"{package}: a message serves two RPCs"


def test_what_is_public_is_documented(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Every file says what it is for."""
    for file in files:
        first = (ROOT / file.name).read_text().splitlines()[0]
        assert first.startswith("// "), f"{file.name}: begin with one line on what it is for"


def test_every_training_setting_is_on_the_wire() -> None:
    """The daemon answers with all settings of a job; one that the message lacks would fail the call."""
    from msgspec.structs import fields

    from optiq_core.train.config import TrainConfig
    from optiq_protos.v1 import training_pb2

    assert {field.name for field in fields(TrainConfig)} == set(training_pb2.TrainingConfig.DESCRIPTOR.fields_by_name)


@pytest.fixture(scope="module")
def tools() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The scripts beside the sources."""
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("reference"), importlib.import_module("compatibility")
    finally:
        sys.path.remove(str(ROOT))


def test_the_reference_page_is_current(tools: tuple[ModuleType, ModuleType]) -> None:
    reference, _ = tools
    made = reference.page(reference.descriptors())
    assert reference.PAGE.read_text() == made, "run `make protos`"
    assert "### GenerationService" in made and "Streams completions." in made


def test_nothing_that_was_released_is_taken_away(tools: tuple[ModuleType, ModuleType]) -> None:
    reference, compatibility = tools
    assert compatibility.breaking(compatibility.released(), reference.descriptors()) == []


def test_what_breaks_callers_is_found(tools: tuple[ModuleType, ModuleType]) -> None:
    compatibility = tools[1]
    old = compatibility.released()

    def after(change: Callable[[descriptor_pb2.FileDescriptorProto], None]) -> list[str]:
        new = [descriptor_pb2.FileDescriptorProto.FromString(file.SerializeToString()) for file in old]
        change(next(file for file in new if file.name.endswith("generation.proto")))
        return compatibility.breaking(old, new)

    def message(file: descriptor_pb2.FileDescriptorProto, name: str) -> descriptor_pb2.DescriptorProto:
        return next(m for m in file.message_type if m.name == name)

    def reserve(file: descriptor_pb2.FileDescriptorProto) -> None:
        queued = message(file, "Queued")
        queued.reserved_range.add(start=1, end=2)
        queued.reserved_name.append(queued.field.pop(0).name)

    assert after(lambda file: None) == []
    assert after(lambda file: message(file, "Queued").field.add(name="other", number=9, type=5, label=1)) == []
    assert after(reserve) == []
    for change, where in (
        (lambda file: message(file, "Queued").field.pop(0), "Queued.position"),
        (lambda file: setattr(message(file, "Queued").field[0], "number", 2), "Queued.position"),
        (lambda file: setattr(message(file, "Queued").field[0], "type", 9), "Queued.position"),
        (lambda file: setattr(message(file, "Queued").field[0], "label", 3), "Queued.position"),
        (lambda file: message(file, "GenerateRequest").field[3].ClearField("oneof_index"), "GenerateRequest.prompt"),
        (lambda file: setattr(file.enum_type[0].value[0], "name", "OTHER"), file_enum(old)),
        (lambda file: file.service[0].method.pop(), "GenerationService.Generate"),
        (lambda file: setattr(file.service[0].method[0], "server_streaming", False), "GenerationService.Generate"),
        (lambda file: file.message_type.remove(message(file, "Usage")), "optiq.v1.Usage"),
    ):
        found = after(change)
        assert found and where in found[0], (where, found)


def file_enum(files: list[descriptor_pb2.FileDescriptorProto]) -> str:
    """The first enum of generation.proto."""
    return next(file for file in files if file.name.endswith("generation.proto")).enum_type[0].name
