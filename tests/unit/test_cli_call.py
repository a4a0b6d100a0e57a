"""`optiq call`: any method with JSON, and the same call for other programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optiq_daemon.cli import main as cli
from tests.tui import scene
from tests.tui.fake_daemon import FakeDaemonThread


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemonThread]:
    for name in ("OPTIQ_HOME", "OPTIQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPTIQ_ADDRESS", f"unix:{tmp_path}/s")
    with FakeDaemonThread(f"unix:{tmp_path}/s") as thread:
        thread.do(lambda: scene.fill(thread.daemon))
        yield thread


def call(*arguments: str) -> int:
    return cli.main(["call", *arguments])


def test_without_a_method_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["GenerationService/Generate", "GenerateRequest", "stream", "GenerateResponse"] in rows
    assert ["AdapterService/UploadAdapter", "stream", "UploadAdapterRequest", "UploadAdapterResponse"] in rows


def test_one_answer_and_a_stream_of_them(server: FakeDaemonThread, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("RuntimeService/GetStatus") == 0
    assert json.loads(capsys.readouterr().out)["status"]["engine"]["state"]
    # The method alone, in any case, is enough where it is unique.
    assert call("listadapters", '{"parent": "tenants/default"}') == 0
    assert json.loads(capsys.readouterr().out)["adapters"]
    assert call("optiq.v1.GenerationService/Generate", '{"prompt": "Say hello."}') == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("started" in event for event in events) and "finished" in events[-1]


def test_the_same_call_for_other_programs(server: FakeDaemonThread, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--as", "grpcurl", "GetStatus") == 0
    line = capsys.readouterr().out
    assert line.startswith("grpcurl -plaintext") and "-unix" in line and "optiq.v1.RuntimeService/GetStatus" in line
    for method, body, expected in (
        ("ListAdapters", '{"parent": "tenants/default"}', "adapters {"),
        ("Generate", '{"prompt": "Say \\"hello\\"."}', "finished {"),
    ):
        assert call("--as", "python", method, body) == 0
        program = capsys.readouterr().out
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("GenerationService/Generat",), "did you mean GenerationService/Generate"),
        (("nonsense",), "see `optiq call`"),
        (("Generate", '{"promt": "x"}'), "its fields are parent, adapter"),
        (("Generate", "not json"), "GenerateRequest"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert told in capsys.readouterr().err
