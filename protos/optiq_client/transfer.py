"""Adapter files over the wire, on the caller's side: reading a folder for an upload, writing one from an export."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from optiq_client.errors import ServerError
from optiq_protos.v1 import adapter_pb2

FILES = ("adapter_config.json", "optiq_lora_config.json", "adapters.safetensors", "adapter_model.safetensors")
CHUNK = 256 * 1024


def describe(folder: Path) -> list[adapter_pb2.AdapterFile]:
    """The files of an adapter folder, with their sizes and SHA-256; everything else in it is left out.

    Raises:
        FileNotFoundError: none of them is there.
    """
    found = []
    for name in FILES:
        path = folder / name
        if path.is_file():
            with path.open("rb") as reading:
                digest = hashlib.file_digest(reading, "sha256").hexdigest()
            found.append(adapter_pb2.AdapterFile(name=name, size_bytes=path.stat().st_size, sha256=digest))
    if not found:
        raise FileNotFoundError(f"{folder}: no adapter; expected one of {', '.join(FILES)}")
    return found


def chunks(folder: Path, header: adapter_pb2.UploadAdapterHeader) -> Iterator[adapter_pb2.UploadAdapterRequest]:
    """The header, then the bytes of its files in their order."""
    yield adapter_pb2.UploadAdapterRequest(header=header)
    for file in header.files:
        with (folder / file.name).open("rb") as reading:
            while data := reading.read(CHUNK):
                yield adapter_pb2.UploadAdapterRequest(chunk=adapter_pb2.AdapterChunk(file=file.name, data=data))


class FolderWriter:
    """Writes an export beside `target` and gives it that name when every file is whole.

    Args:
        target: the folder to make.
        overwrite: replace one of that name.

    Raises:
        FileExistsError: it exists and ``overwrite`` is false.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists")
        self.digest = ""
        self._target = target
        self._staging = target.parent / f".{target.name}.export-{os.getpid()}"
        self._expected: dict[str, adapter_pb2.AdapterFile] = {}
        self._open: dict[str, IO[bytes]] = {}
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(parents=True)

    def take(self, response: adapter_pb2.ExportAdapterResponse) -> None:
        """Write what one message brings."""
        if response.WhichOneof("part") == "header":
            self.digest = response.header.digest
            for file in response.header.files:
                if file.name not in FILES:
                    raise ServerError(f"the daemon sent a file that no adapter has: {file.name!r}")
                self._expected[file.name] = file
                self._open[file.name] = (self._staging / file.name).open("wb")
        elif response.chunk.file in self._open:
            self._open[response.chunk.file].write(response.chunk.data)

    def finish(self) -> None:
        """Check every file and give the folder its name."""
        for writing in self._open.values():
            writing.close()
        for name, file in self._expected.items():
            with (self._staging / name).open("rb") as reading:
                if hashlib.file_digest(reading, "sha256").hexdigest() != file.sha256:
                    raise ServerError(f"{name} did not arrive whole; try again")
        if self._target.exists():
            shutil.rmtree(self._target)
        self._staging.rename(self._target)

    def discard(self) -> None:
        """Remove what was written, unless it has its name."""
        for writing in self._open.values():
            writing.close()
        shutil.rmtree(self._staging, ignore_errors=True)
