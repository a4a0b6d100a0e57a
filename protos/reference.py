"""Writes ``REFERENCE.md``, the page of everything on the wire, from the sources and their comments.

``python protos/reference.py`` (``make protos`` runs it).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PAGE = ROOT / "REFERENCE.md"
_HEAD = """# The wire

Written by `make protos` from the sources in `optiq_protos/v1`; their comments are its text. Errors carry a
`google.rpc.Status` with `ErrorInfo` (a stable reason), `BadRequest` (which field), `ResourceInfo` and `RetryInfo` where
they apply. A token goes into the metadata as `authorization: Bearer TOKEN`. Try any method with
`optiq call SERVICE/METHOD JSON`; `--as grpcurl` and `--as python` print the same call for those.
"""
_NAMES = {number: name.removeprefix("TYPE_").lower() for name, number in pb.FieldDescriptorProto.Type.items()}


def descriptors(folder: str = "optiq_protos/v1") -> list[pb.FileDescriptorProto]:
    """The public files with their comments, by name.

    Raises:
        RuntimeError: protoc refuses the sources.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.proto"))
    known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "set.binpb"
        flags = [f"-I{ROOT}", f"-I{known}", f"--descriptor_set_out={out}", "--include_source_info"]
        if protoc.main(["protoc", *flags, *sources]) != 0:
            raise RuntimeError("protoc refused the sources")
        return sorted(pb.FileDescriptorSet.FromString(out.read_bytes()).file, key=lambda file: file.name)


def page(files: Iterable[pb.FileDescriptorProto]) -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for file in files:
        parts.append(f"## {Path(file.name).stem}\n\n{_Comments(file).at(12)}".rstrip() + "\n")
        parts += _services(file)
        parts += _messages(file)
        parts += _enums(file)
    return "\n".join(parts)


class _Comments:
    """Leading comments by their path in a file."""

    def __init__(self, file: pb.FileDescriptorProto) -> None:
        self._by_path = {
            tuple(location.path): location.leading_comments or "\n".join(location.leading_detached_comments)
            for location in file.source_code_info.location
        }

    def at(self, *path: int) -> str:
        """The comment in one paragraph; for the ``syntax`` line, what stands above it."""
        return " ".join(self._by_path.get(path, "").split())


def _services(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for at, service in enumerate(file.service):
        yield f"### {service.name}\n\n{comments.at(6, at)}".rstrip() + "\n"
        rows = []
        for index, method in enumerate(service.method):
            asked = f"{'stream ' if method.client_streaming else ''}{_link(method.input_type)}"
            told = f"{'stream ' if method.server_streaming else ''}{_link(method.output_type)}"
            rows.append((f"`{method.name}`", asked, told, comments.at(6, at, 2, index)))
        yield _table(("method", "takes", "gives", ""), rows)


def _messages(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for at, message in enumerate(file.message_type):
        yield f"### {message.name}\n\n{comments.at(4, at)}".rstrip() + "\n"
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        rows = []
        for index, field in enumerate(message.field):
            label = _label(message, field)
            kind = f"{label} {_type(field, maps)}".strip()
            rows.append((f"`{field.name}`", str(field.number), kind, comments.at(4, at, 2, index)))
        yield _table(("field", "number", "type", ""), rows) if rows else "No fields.\n"


def _enums(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for at, enum in enumerate(file.enum_type):
        yield f"### {enum.name}\n\n{comments.at(5, at)}".rstrip() + "\n"
        rows = [(f"`{v.name}`", str(v.number), comments.at(5, at, 2, i)) for i, v in enumerate(enum.value)]
        yield _table(("value", "number", ""), rows)


def _label(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    if field.proto3_optional:
        return "optional"
    if field.HasField("oneof_index"):
        return f"one of `{message.oneof_decl[field.oneof_index].name}`:"
    return "repeated" if field.label == pb.FieldDescriptorProto.LABEL_REPEATED else ""


def _type(field: pb.FieldDescriptorProto, maps: dict[str, pb.DescriptorProto]) -> str:
    name = field.type_name.rpartition(".")[2]
    if name in maps:
        key, value = maps[name].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    return _link(field.type_name) if field.type_name else f"`{_NAMES[field.type]}`"


def _link(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})" if name.startswith(".optiq.v1.") else f"`{name.lstrip('.')}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(descriptors()), encoding="utf-8")
