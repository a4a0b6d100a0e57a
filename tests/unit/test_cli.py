"""The command line against a server in this process: output, exit codes, completion, and what it imports."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from optiq_client import humanize
from optiq_daemon.cli import bench
from optiq_daemon.cli import main as cli
from optiq_daemon.cli.entry_points import EntryPointGroup
from tests.tui import scene
from tests.tui.fake_daemon import FakeDaemonThread

ENTRIES = sorted(metadata.entry_points(group=cli.GROUP), key=lambda e: e.name)
BENCHES = sorted(metadata.entry_points(group=bench.GROUP), key=lambda e: e.name)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemonThread]:
    monkeypatch.setenv("OPTIQ_HOME", str(tmp_path))
    monkeypatch.setenv("OPTIQ_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("OPTIQ_ADDRESS", raising=False)
    (tmp_path / "run").mkdir()
    with FakeDaemonThread(f"unix:{tmp_path}/run/daemon.sock") as thread:
        thread.do(lambda: scene.fill(thread.daemon))
        yield thread


def optiq(*args: str) -> int:
    return cli.main(list(args))


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand that this checkout has."""

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for child, member in command.commands.items():
                yield from walk(f"{name} {child}", member)

    for entry in ENTRIES:
        yield from walk(entry.name, entry.load())
    for entry in BENCHES:
        yield from walk(f"bench {entry.name}", entry.load())


def test_help_lists_every_command_and_imports_none(tmp_path: Path) -> None:
    code = (
        "import sys; from optiq_daemon.cli.main import main; code = main(['--help'])\n"
        "heavy = {'grpc', 'rich', 'textual', 'mlx', 'msgspec', 'numpy', 'google.protobuf'} & set(sys.modules)\n"
        "ours = {m for m in sys.modules if m.startswith('optiq')}\n"
        "print(sorted(heavy), sorted(ours), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for entry in ENTRIES:
        assert f"\n  {entry.name} " in done.stdout
    assert done.stderr.strip() == (
        "[] ['optiq_daemon', 'optiq_daemon.cli', 'optiq_daemon.cli.entry_points', "
        "'optiq_daemon.cli.exits', 'optiq_daemon.cli.main']"
    )


def test_summaries_are_the_commands_own() -> None:
    for entries, summaries in ((ENTRIES, cli.SUMMARIES), (BENCHES, bench.SUMMARIES)):
        assert set(summaries) == {e.name for e in entries}
        for entry in entries:
            assert (entry.load().help or "").strip().startswith(summaries[entry.name].rstrip(".")), entry.name


def test_every_command_has_help_with_an_example() -> None:
    for name, command in commands():
        assert command.help, name
        assert f"optiq {name.split()[0]}" in (command.epilog or ""), name


# The options of a job are the fields of a msgspec structure.
@pytest.mark.parametrize(
    ("module", "needed"),
    [("ps", []), ("adapters", []), ("jobs", ["msgspec"]), ("generate", []), ("config", []), ("call", [])],
)
def test_command_modules_import_nothing_heavy(module: str, needed: list[str]) -> None:
    code = (
        f"import sys, optiq_daemon.cli.{module}\n"
        "print(sorted({'grpc', 'rich', 'textual', 'mlx', 'msgspec', 'optiq_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{needed}\n"


def test_version_and_typos(capsys: pytest.CaptureFixture[str]) -> None:
    assert optiq("--version") == 0
    assert capsys.readouterr().out == f"optiq {metadata.version('optiq')}\n"
    assert optiq("adaptors") == 2
    assert "Did you mean 'adapters'?" in capsys.readouterr().err
    assert optiq("generate", "--tempersture", "1", "x") == 2
    assert "--temperature" in capsys.readouterr().err
    assert optiq("qqqqqqq") == 2
    assert "optiq --help" in capsys.readouterr().err


def test_a_command_that_cannot_be_loaded_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = metadata.EntryPoint("broken", "no_such_module:command", cli.GROUP)
    monkeypatch.setattr(EntryPointGroup, "entries", lambda self: {"broken": broken})
    assert optiq("broken") == 1
    assert "command broken (no_such_module:command) cannot be loaded" in capsys.readouterr().err


def test_ps(server: FakeDaemonThread, capsys: pytest.CaptureFixture[str]) -> None:
    assert optiq("ps") == 0
    out = capsys.readouterr().out
    assert "538 MiB" in out
    assert "at most 4 adapters in one step" in out
    assert "legal-summaries" in out
    assert "(base)" in out
    assert optiq("ps", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["engine"]["state"] == "SERVING"
    assert [a["id"] for a in data["residents"]] == ["legal-summaries", "roman", "units"]
    assert data["requests"][0]["start_time"] == "2026-03-14T15:09:22Z"


def test_adapters(server: FakeDaemonThread, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert optiq("adapters", "ls") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == [
        "NAME", "STATE", "DIGEST", "FORMAT", "KIND", "RANK", "PARAMETERS", "DISK", "REQUESTS", "CHANGED",
    ]  # fmt: skip
    assert len(out.splitlines()) == 6
    assert "haiku: SHAPE_MISMATCH: adapters.safetensors model.layers.3" in err
    assert optiq("adapters", "ls", "--json") == 0
    assert [a["id"] for a in json.loads(capsys.readouterr().out)][2] == "roman"
    assert optiq("adapters", "show", "haiku") == 0
    assert "expected [576, 8], found [512, 8]" in capsys.readouterr().out
    (tmp_path / "fresh").mkdir()
    assert optiq("adapters", "import", str(tmp_path / "fresh"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tenants/default/adapters/fresh"
    assert optiq("adapters", "unload", "roman", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "AVAILABLE"
    assert optiq("adapters", "load", "roman", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "RESIDENT"
    assert optiq("adapters", "rm", "roman", "units", "-y") == 0
    assert "tenants/default/adapters/roman" not in server.daemon.adapters


def test_rm_asks(server: FakeDaemonThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert optiq("adapters", "rm", "roman") == 130
    assert "tenants/default/adapters/roman" in server.daemon.adapters
    assert capsys.readouterr().out == ""


def test_jobs(server: FakeDaemonThread, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert optiq("jobs", "ls") == 0
    out = capsys.readouterr().out
    assert "38/60" in out
    assert "train.jsonl line 14" in out
    assert optiq("jobs", "show", "units-0004") == 0
    assert "step   38/60" in capsys.readouterr().out
    assert optiq("jobs", "watch", "roman-0002", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["job"]["state"] == "SUCCEEDED"
    assert optiq("jobs", "watch", "legal-notes-0003") == 1
    assert "failed: train.jsonl line 14" in capsys.readouterr().err
    submitted = optiq(
        "jobs", "submit", "--adapter", "tone", "--data", str(tmp_path), "--rank", "4", "--iters", "7",
        "--target-modules", "q_proj, o_proj", "--no-mask-prompt", "--json",
    )  # fmt: skip
    assert submitted == 0
    made = json.loads(capsys.readouterr().out)
    config = server.daemon.calls[-1].config
    assert (config.rank, config.iters, list(config.target_modules)) == (4, 7, ["q_proj", "o_proj"])
    assert config.HasField("mask_prompt")
    assert not config.mask_prompt
    assert optiq("jobs", "cancel", made["id"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "CANCELLED"


def test_generate(
    server: FakeDaemonThread, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert optiq("generate", "--adapter", "roman", "-v", "-t", "0.5", "--stop", "!", "What is 12?") == 0
    out, err = capsys.readouterr()
    assert out == "XII\n"
    assert "roman@" in err
    assert "33.2 tokens/s" in err
    assert list(server.daemon.calls[-1].stop) == ["!"]
    assert optiq("generate", "--json", "--system", "Be brief.", "x") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["text"], data["finished"]["reason"]) == ("XII", "STOP")
    assert len(server.daemon.calls[-1].messages.messages) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from stdin")))
    assert optiq("generate", "--raw", "-") == 0
    assert server.daemon.calls[-1].raw_text == "from stdin"
    assert optiq("generate", "-a", "roman=0.7", "-a", "units", "--json", "x") == 0
    asked = server.daemon.calls[-1]
    assert not asked.adapter
    assert [(part.name, part.weight) for part in asked.adapters] == [("roman", 0.7), ("units", 1.0)]
    capsys.readouterr()
    assert optiq("generate", "-a", "roman=much", "x") == 2
    assert optiq("generate", "-a", "roman", "-a", "roman=0.5", "x") == 2
    assert "--adapter roman is given twice" in capsys.readouterr().err
    assert optiq("generate", "--adapter", "nobody", "x") == 1
    assert capsys.readouterr().err == "Error: no adapter tenants/default/adapters/nobody\n"


def test_ctrl_c_cancels_the_generation(server: FakeDaemonThread) -> None:
    server.daemon.reply, server.daemon.piece_delay = ["tick "] * 10_000, 0.01
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from optiq_daemon.cli.main import main; sys.exit(main())", "generate", "x"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(5) == b"tick "
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    for _ in range(100):
        if server.daemon.cancelled_generations:
            break
        time.sleep(0.05)
    assert server.daemon.cancelled_generations == 1


def test_no_daemon_is_retryable_and_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTIQ_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("OPTIQ_ADDRESS", raising=False)
    assert optiq("ps", "--home", str(tmp_path)) == 3
    assert "start it with: optiq serve" in capsys.readouterr().err
    assert optiq("ps", "--home", "/" + "x" * 120) == 1
    assert "OPTIQ_HOME" in capsys.readouterr().err


def test_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.toml"
    monkeypatch.setenv("OPTIQ_CONFIG", str(file))
    monkeypatch.setenv("OPTIQ_MAX_BATCH", "32")
    file.write_text("settle_ms = 300\n")
    assert optiq("config", "path") == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert optiq("config", "show", "--origin", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["settle_ms"] == {"value": 300, "origin": str(file)}
    assert data["max_batch"] == {"value": 32, "origin": "OPTIQ_MAX_BATCH"}
    assert optiq("config", "show", "--origin") == 0
    assert "OPTIQ_MAX_BATCH" in capsys.readouterr().out
    file.write_text("settle = 1\n")
    assert optiq("config", "show") == 1
    assert "settle: not a setting" in capsys.readouterr().err


def test_the_configuration_says_where_the_daemon_is(
    server: FakeDaemonThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPTIQ_HOME")
    (tmp_path / "config.toml").write_text(f'home = "{tmp_path}"\n')
    assert optiq("ps") == 0
    assert "legal-summaries" in capsys.readouterr().out


def test_completion_of_names(server: FakeDaemonThread, tmp_path: Path) -> None:
    def complete(*args: str, incomplete: str) -> list[str]:
        shell = ShellComplete(cli.root, {}, "optiq", "_OPTIQ_COMPLETE")
        return [item.value for item in shell.get_completions(list(args), incomplete)]

    assert complete("adapters", "show", incomplete="r") == ["roman"]
    assert complete("generate", "--adapter", incomplete="") == [
        "haiku",
        "legal-summaries",
        "roman",
        "sql-notes",
        "units",
    ]
    assert complete("jobs", "cancel", incomplete="un") == ["units-0004"]
    assert complete("adapters", "show", "--home", "/nowhere", incomplete="r") == []
    assert "adapters" in complete(incomplete="ad")


def test_tables_on_a_terminal_are_drawn_by_rich(server: FakeDaemonThread) -> None:
    pty = importlib.import_module("pty")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from optiq_daemon.cli.main import main; main(['adapters', 'ls'])"],
        stdout=follower, stderr=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "140", "TERM": "xterm-256color"},
    )  # fmt: skip
    assert process.wait(30) == 0
    os.close(follower)
    text = b""
    try:
        while piece := os.read(leader, 65536):
            text += piece
    except OSError:  # Linux: the other end is closed
        pass
    os.close(leader)
    assert b"legal-summaries" in text
    assert b"\x1b[" in text


def test_humanize() -> None:
    assert [humanize.size(n) for n in (0, 999, 564_133_888, 2_069_889_024)] == ["-", "999 B", "538 MiB", "1.9 GiB"]
    assert [humanize.duration(s) for s in (5, 130, 12_300, 200_000)] == ["5s", "2m10s", "3h25m", "2d7h"]
    assert [humanize.count(n) for n in (12, 460_800, 1_290_240)] == ["12", "461 K", "1.29 M"]
    assert humanize.since(None) == "-"
    assert [humanize.ranks(0, 0), humanize.ranks(8, 8), humanize.ranks(8, 16)] == ["-", "8", "8-16"]
