"""Adapter files over the wire: what is taken, checked byte by byte, and what is sent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from optiq_core.adapters.export import EXPORT_FORMATS, ExportFormat, export_adapter
from optiq_core.adapters.files import MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES
from optiq_core.adapters.format import CONFIG, MLX_WEIGHTS, OPTIQ_CONFIG, PEFT_WEIGHTS
from optiq_daemon.blobs import Blobs
from optiq_daemon.errors import InvalidRequestError, RefusedError
from optiq_protos.v1 import adapter_pb2

CHUNK = 256 * 1024
MAX_CHUNK = 1024 * 1024
# A disk that is full stops everybody; this much stays free.
RESERVE_BYTES = 256 << 20

LIMITS = {
    CONFIG: MAX_CONFIG_BYTES,
    OPTIQ_CONFIG: MAX_CONFIG_BYTES,
    MLX_WEIGHTS: MAX_WEIGHTS_BYTES,
    PEFT_WEIGHTS: MAX_WEIGHTS_BYTES,
}


@contextlib.contextmanager
def scratch(blobs: Blobs) -> Iterator[Path]:
    """A folder that is removed at the end."""
    folder = blobs.scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def first_header(requests: AsyncIterator[adapter_pb2.UploadAdapterRequest]) -> adapter_pb2.UploadAdapterHeader:
    """The header that an upload begins with.

    Raises:
        InvalidRequestError: there is none, or it announces files that make no adapter.
    """
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidRequestError.of("header", "an upload begins with a header")
    header = first.header
    names = [file.name for file in header.files]
    # No default here: what a request leaves out is filled in at its top level only, by the caller's own tenant.
    wrong = [] if header.parent else [("header.parent", "must be tenants/{tenant}")]
    for index, file in enumerate(header.files):
        limit = LIMITS.get(file.name)
        if limit is None:
            wrong.append((f"header.files[{index}].name", f"must be one of {', '.join(LIMITS)}"))
        elif not 0 < file.size_bytes <= limit:
            wrong.append((f"header.files[{index}].size_bytes", f"must be 1 to {limit}, is {file.size_bytes}"))
        if len(file.sha256) != 64:
            wrong.append((f"header.files[{index}].sha256", "must be 64 hex digits"))
    if len(names) != len(set(names)) or CONFIG not in names or len(names) < 2:
        wrong.append(("header.files", f"must be {CONFIG} and a weights file, each once"))
    if wrong:
        raise InvalidRequestError(wrong)
    return header


async def receive(
    header: adapter_pb2.UploadAdapterHeader, requests: AsyncIterator[adapter_pb2.UploadAdapterRequest], folder: Path
) -> None:
    """Write the announced files, which come one after the other, and check every byte.

    Raises:
        InvalidRequestError: more, less or other bytes than announced.
        RefusedError: the disk has no room for them.
    """
    total = sum(file.size_bytes for file in header.files)
    if shutil.disk_usage(folder).free < total + RESERVE_BYTES:
        raise RefusedError(f"the daemon's disk has no room for {total} bytes", reason="DISK_FULL")
    chunks = aiter(requests)
    for file in header.files:
        hasher = hashlib.sha256()
        left = file.size_bytes
        with (folder / file.name).open("wb") as writing:
            while left:
                data = _chunk_of(await anext(chunks, None), file.name)
                if len(data) > left:
                    raise InvalidRequestError.of("chunk.data", f"{file.name} is longer than announced")
                hasher.update(data)
                left -= len(data)
                await asyncio.to_thread(writing.write, data)
        if hasher.hexdigest() != file.sha256:
            raise InvalidRequestError.of("chunk.data", f"the bytes of {file.name} do not have the announced SHA-256")
    if await anext(chunks, None) is not None:
        raise InvalidRequestError.of("chunk", "more follows than was announced")


def _chunk_of(request: adapter_pb2.UploadAdapterRequest | None, name: str) -> bytes:
    if request is None:
        raise InvalidRequestError.of("chunk", f"the stream ended before {name} was whole")
    if request.WhichOneof("part") != "chunk" or request.chunk.file != name:
        raise InvalidRequestError.of("chunk.file", f"expected bytes of {name}, in the order of the header")
    if not 0 < len(request.chunk.data) <= MAX_CHUNK:
        raise InvalidRequestError.of("chunk.data", f"must have 1 to {MAX_CHUNK} bytes")
    return request.chunk.data


def check_format(text: str) -> ExportFormat | None:
    """The export format, None for the files as they are.

    Raises:
        InvalidRequestError: there is no such format.
    """
    for form in EXPORT_FORMATS:
        if text == form:
            return form
    if text:
        raise InvalidRequestError.of("format", f"must be empty or one of {', '.join(EXPORT_FORMATS)}")
    return None


def exported(version: Path, folder: Path, form: ExportFormat | None) -> Path:
    """A version's folder in the wanted format, written below `folder` if it has to be made; for a thread."""
    if form is None:
        return version
    export_adapter(version, folder / "export", form)
    return folder / "export"


async def send(digest: str, folder: Path) -> AsyncIterator[adapter_pb2.ExportAdapterResponse]:
    """The files of a folder: header, then their bytes."""
    files = await asyncio.to_thread(_described, folder)
    yield adapter_pb2.ExportAdapterResponse(header=adapter_pb2.ExportAdapterHeader(digest=digest, files=files))
    for file in files:
        with (folder / file.name).open("rb") as reading:
            while data := await asyncio.to_thread(reading.read, CHUNK):
                yield adapter_pb2.ExportAdapterResponse(chunk=adapter_pb2.AdapterChunk(file=file.name, data=data))


def _described(folder: Path) -> list[adapter_pb2.AdapterFile]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in LIMITS:
            with path.open("rb") as reading:
                digest = hashlib.file_digest(reading, "sha256").hexdigest()
            found.append(adapter_pb2.AdapterFile(name=path.name, size_bytes=path.stat().st_size, sha256=digest))
    return found
