"""Training data by its id on the hub, with the real ``datasets`` and a hub of this machine that serves two files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REVISION = "a" * 40
FILES = {
    "train.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
    "validation.jsonl": b'{"prompt": "e", "completion": "f"}\n',
}
READ = """
import json, sys
from optiq_core.errors import DataError
from optiq_core.train.hub import read_hub
try:
    train, valid = read_hub(sys.argv[1])
except DataError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
print(json.dumps([len(train), len(valid), train[0].format]))
"""


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if not path.startswith(("/api/datasets/someone/puzzles", "/datasets/someone/puzzles/")):
            self._answer(404, b"", error="RepoNotFound")
        elif "/resolve/" in path:
            content = FILES.get(path.rsplit("/", 1)[1])
            self._answer(404, b"", error="EntryNotFound") if content is None else self._answer(200, content)
        elif "/tree/" in path:
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "b" * 40} for n, c in FILES.items()]
            self._answer(200, json.dumps(entries).encode())
        else:
            siblings = [{"rfilename": name} for name in FILES]
            card = {"id": "someone/puzzles", "sha": REVISION, "siblings": siblings, "tags": [], "private": False}
            self._answer(200, json.dumps(card).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, content: bytes, *, error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{len(content)}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read(hub: str, dataset: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder)}
    command = [sys.executable, "-c", READ, dataset]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.referee
def test_a_dataset_of_the_hub_is_read_by_its_id(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    found = read(hub, "someone/puzzles", tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [2, 1, "completions"]
    nowhere = read(hub, "someone/nothing", tmp_path)
    assert nowhere.returncode == 1 and "someone/nothing: cannot be loaded from the hub" in nowhere.stderr
