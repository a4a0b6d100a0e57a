"""``optiq call``: any RPC with JSON, and the same call for other programs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from optiq_daemon.cli import output
from optiq_daemon.cli.options import Connection, connection_options, default_address

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

PACKAGE = "optiq.v1"


def _complete_method(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(_short(method)) for method in _methods() if _short(method).startswith(incomplete)]


@click.command(
    epilog="\b\nExamples:\n  optiq call                                  # the methods\n"
    "  optiq call RuntimeService/GetStatus\n"
    '  optiq call GenerationService/Generate \'{"prompt": "Say hello.", "max_tokens": 8}\'\n'
    '  optiq call --as grpcurl GenerationService/Generate \'{"prompt": "Say hello."}\'\n'
    '  optiq call --as python AdapterService/ListAdapters \'{"parent": "tenants/default"}\''
)
@click.argument("method", required=False, shell_complete=_complete_method)
@click.argument("request", required=False)
@click.option(
    "--as", "form", type=click.Choice(["grpcurl", "python"]), help="Print the same call for that, and do not call."
)
@click.option("--timeout", type=float, help="Seconds for the whole call.")
@connection_options
def call(
    method: str | None, request: str | None, form: str | None, timeout: float | None, connection: Connection
) -> None:
    """Call SERVICE/METHOD with a REQUEST in JSON, or list the methods.

    Answers are printed as JSON, one a line where there is a stream of them. REQUEST - reads stdin; a method that takes
    a stream reads one JSON object a line. protos/REFERENCE.md describes all fields.
    """
    if method is None:
        output.print_table(
            ("METHOD", "TAKES", "GIVES"),
            [
                (
                    _short(m),
                    f"{'stream ' if m.client_streaming else ''}{m.input_type.name}",
                    f"{'stream ' if m.server_streaming else ''}{m.output_type.name}",
                )
                for m in _methods()
            ],
        )
        return
    found = _find(method)
    requests = _requests(found, request)
    if form is not None:
        address = default_address(connection.address, connection.home)
        click.echo((_as_grpcurl if form == "grpcurl" else _as_python)(found, requests, address))
        return
    for answer in _answers(found, requests, connection, timeout):
        click.echo(_json(answer, indent=None if found.server_streaming else 2))


def _methods() -> list[MethodDescriptor]:
    """Of all public services, in the order of their files."""
    from optiq_protos.v1 import adapter_pb2, event_pb2, generation_pb2, route_pb2, runtime_pb2, tenant_pb2, training_pb2

    files = (generation_pb2, adapter_pb2, route_pb2, training_pb2, tenant_pb2, runtime_pb2, event_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


def _short(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}/{method.name}"


def _find(name: str) -> MethodDescriptor:
    """The method of `Service/Method`, with its package or without, or of a method's name that is unique.

    Raises:
        click.UsageError: there is none; names the nearest ones.
    """
    import difflib

    wanted = name.strip("/").removeprefix(f"{PACKAGE}.").replace(".", "/").lower()
    methods = _methods()
    matching = [m for m in methods if wanted in (_short(m).lower(), m.name.lower())]
    if len(matching) == 1:
        return matching[0]
    near = difflib.get_close_matches(wanted, [_short(m).lower() for m in methods], 3, 0.5)
    hints = [_short(m) for m in matching or methods if m in matching or _short(m).lower() in near]
    raise click.UsageError(
        f"there is no method {name!r}; {'did you mean ' + ', '.join(hints) if hints else 'see `optiq call`'}"
    )


def _requests(method: MethodDescriptor, text: str | None) -> list[Message]:
    """The request's messages.

    Raises:
        click.UsageError: it is not the JSON of one.
    """
    from google.protobuf import json_format, message_factory

    if text == "-":
        text = sys.stdin.read()
    text = text or "{}"
    kind: type[Message] = message_factory.GetMessageClass(method.input_type)
    lines = [line for line in text.splitlines() if line.strip()] if method.client_streaming else [text]
    try:
        return [json_format.Parse(line, kind()) for line in lines]
    except json_format.ParseError as error:
        fields = ", ".join(field.name for field in method.input_type.fields)
        raise click.UsageError(f"{method.input_type.name}: {error}; its fields are {fields or 'none'}") from None


def _answers(
    method: MethodDescriptor, requests: list[Message], connection: Connection, timeout: float | None
) -> Iterator[Message]:
    from google.protobuf import message_factory

    from optiq_client.calls import Call, Upload

    path = f"/{method.containing_service.full_name}/{method.name}"
    kind: type[Message] = message_factory.GetMessageClass(method.output_type)

    def as_it_is(answer: Any) -> Any:
        return answer

    with connection.client() as client:
        if method.client_streaming:
            upload = Upload(path, requests[0] if requests else kind(), kind, as_it_is, lambda: iter(requests))
            yield client.upload(upload, timeout)
        elif method.server_streaming:
            with client.stream(Call(path, requests[0], kind, as_it_is), timeout) as stream:
                yield from stream
        else:
            yield client.run(Call(path, requests[0], kind, as_it_is), timeout)


def _json(message: Message, indent: int | None) -> str:
    from google.protobuf import json_format

    text: str = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=indent, ensure_ascii=False)
    return text


def _as_grpcurl(method: MethodDescriptor, requests: list[Message], address: str) -> str:
    """A command line; the daemon's reflection service tells grpcurl the protos."""
    body = "\n".join(_json(request, None) for request in requests)
    # grpcurl names no scheme for TCP, and takes a Unix socket's path with its own flag.
    where = ["-unix", address.removeprefix("unix:")] if address.startswith("unix:") else [address]
    flags = ["-plaintext", "-H", "authorization: Bearer $OPTIQ_TOKEN", "-d", body, *where]
    quoted = " ".join(f'"{flag}"' if "$" in flag else shlex.quote(flag) for flag in flags)
    return f"grpcurl {quoted} {method.containing_service.full_name}/{method.name}"


def _as_python(method: MethodDescriptor, requests: list[Message], address: str) -> str:
    """A program on the generated stubs."""
    module = method.containing_service.file.name.removesuffix(".proto").rpartition("/")[2]
    made = [
        f"json_format.Parse({json.dumps(_json(request, None))}, {module}_pb2.{method.input_type.name}())"
        for request in requests
    ]
    argument = f"iter([{', '.join(made)}])" if method.client_streaming else made[0]
    told = f"stub.{method.name}(\n        {argument},\n        metadata=metadata,\n    )"
    show = f"for answer in {told}:\n        print(answer)" if method.server_streaming else f"print({told})"
    return f"""import os

import grpc
from google.protobuf import json_format
from optiq_protos.v1 import {module}_pb2, {module}_pb2_grpc

token = os.environ.get("OPTIQ_TOKEN")
metadata = [("authorization", f"Bearer {{token}}")] if token else []
with grpc.insecure_channel({address!r}) as channel:
    stub = {module}_pb2_grpc.{method.containing_service.name}Stub(channel)
    {show}"""
