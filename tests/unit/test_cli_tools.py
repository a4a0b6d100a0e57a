"""logs, service, completion and doctor, as far as they need no daemon."""

from __future__ import annotations

import configparser
import json
import os
import plistlib
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from optiq_daemon.cli import checks
from optiq_daemon.cli.log_files import Added, LogFile, last_lines
from optiq_daemon.cli.main import root
from optiq_daemon.cli.service_files import launchd_plist, systemd_unit


@pytest.fixture
def logs(tmp_path: Path) -> list[LogFile]:
    (tmp_path / "daemon.log").write_text(
        "2026-01-01 10:00:00,000 INFO a\n2026-01-01 10:00:02,000 ERROR b\nTraceback:\n  line\n"
    )
    (tmp_path / "engine.log").write_text('{"time":"2026-01-01T10:00:01.000","event":"c"}\n')
    return [LogFile(name, tmp_path / f"{name}.log") for name in ("daemon", "engine", "trainer")]


def test_logs_are_merged_in_order_of_time(logs: list[LogFile]) -> None:
    lines = [line.text[:28] for line in last_lines(logs, 10)]
    assert lines == [
        "2026-01-01 10:00:00,000 INFO",
        '{"time":"2026-01-01T10:00:01',
        "2026-01-01 10:00:02,000 ERRO",
        "Traceback:",
        "  line",
    ]
    assert [line.text for line in last_lines(logs, 2)] == ["Traceback:", "  line"]
    assert last_lines(logs, 0) == []


def test_following_sees_what_comes_a_line_at_a_time(logs: list[LogFile]) -> None:
    daemon = logs[0].path
    added = iter(Added(logs))
    with daemon.open("a") as file:
        file.write("2026-01-01 10:00:03,000 INFO half")
        file.flush()
        logs[2].path.write_text("2026-01-01 10:00:04,000 INFO new file\n")
        assert [(line.name, line.text[24:]) for line in islice(added, 1)] == [("trainer", "INFO new file")]
        file.write(" and half\n")
    assert [line.text[24:] for line in islice(added, 1)] == ["INFO half and half"]
    daemon.rename(daemon.with_suffix(".log.1"))
    daemon.write_text("2026-01-01 10:00:05,000 INFO rotated\n")
    assert [line.text[24:] for line in islice(added, 1)] == ["INFO rotated"]


def test_logs_of_a_home_without_any(tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["logs", "--home", str(tmp_path)])
    assert result.exit_code == 1 and "optiq config show" in result.output
    result = CliRunner().invoke(root, ["logs", "trainer", "--job", "../x", "--home", str(tmp_path)])
    assert result.exit_code == 2 and "not a job id" in result.output


def test_logs_as_json(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "daemon.log").write_text("2026-01-01 10:00:00,000 INFO one\n  of two lines\n")
    result = CliRunner().invoke(root, ["logs", "--json", "--home", str(tmp_path)])
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == [
        "2026-01-01 10:00:00,000 INFO one",
        "  of two lines",
    ]
    assert json.loads(result.stdout.splitlines()[1]) == {
        "name": "daemon",
        "stamp": "2026-01-01 10:00:00,000",
        "text": "  of two lines",
    }


def test_launchd_agent() -> None:
    command = ["/a b/python", "-m", "optiq_daemon", "serve", "--model", "x&y"]
    agent = plistlib.loads(launchd_plist(command, Path("/home/o/logs/service.log")))
    assert agent["ProgramArguments"] == command and agent["RunAtLoad"] is True
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["StandardErrorPath"] == "/home/o/logs/service.log"


words = st.text(st.characters(exclude_categories=["C"], exclude_characters="\x7f"), min_size=1, max_size=12)


@settings(max_examples=20, deadline=None)
@given(st.lists(words, min_size=1, max_size=4))
def test_systemd_unit_keeps_every_word(arguments: list[str]) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(systemd_unit(["/a b/python", *arguments]))
    line = unit["Service"]["ExecStart"].replace("%%", "%").replace("$$", "$")
    script = "import sys, json; print(json.dumps(sys.argv[1:]))"
    read = subprocess.run(
        ["/bin/sh", "-c", f"\"$0\" -c '{script}' {line}", sys.executable], capture_output=True, text=True, check=True
    )
    assert json.loads(read.stdout) == ["/a b/python", *arguments]


def test_service_install_checks_what_it_passes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shown = CliRunner().invoke(root, ["service", "install", "--print", "--home", "/srv/o", "--", "--port", "8080"])
    assert shown.exit_code == 0 and "/srv/o" in shown.output and "8080" in shown.output
    wrong = CliRunner().invoke(root, ["service", "install", "--", "--prt", "1"])
    assert wrong.exit_code == 2 and "--port" in wrong.output
    status = CliRunner().invoke(root, ["service", "status", "--json"])
    assert status.exit_code == 3 and json.loads(status.output)["installed"] is False
    written = CliRunner().invoke(root, ["service", "install", "--no-start"])
    assert written.exit_code == 0
    path = Path(json.loads(CliRunner().invoke(root, ["service", "status", "--json"]).output)["path"])
    assert path.is_file() and path.is_relative_to(tmp_path)
    assert CliRunner().invoke(root, ["service", "uninstall"]).exit_code == 0 and not path.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_what_the_shell_can_read(shell: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["completion", shell])
    assert result.exit_code == 0 and "_OPTIQ_COMPLETE" in result.output
    if program := shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(result.output)
        checked = subprocess.run([program, "-n", str(script)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_completion_offers_commands_and_no_names_without_a_daemon(tmp_path: Path) -> None:
    def complete(words: str) -> list[str]:
        environment = {**os.environ, "OPTIQ_HOME": str(tmp_path), "_OPTIQ_COMPLETE": "bash_complete"}
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - (words[-1] != " "))}
        program = "import sys; from optiq_daemon.cli.main import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=20, check=True
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("optiq do") == ["doctor"]
    assert "--adapter" in complete("optiq chat --a")
    assert complete("optiq chat --adapter ") == []


def test_doctor_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run").chmod(0o755)
    found = {check.name: check for check in checks.run_checks(str(tmp_path))}
    assert found["home"].verdict == "fail" and found["home"].mend == f"chmod 700 {tmp_path / 'run'}"
    assert found["daemon"].verdict == "warn" and found["daemon"].mend == "optiq daemon start"
    assert found["versions"].verdict == "ok" and found["device"].verdict == "ok"
    monkeypatch.setenv("OPTIQ_MAX_BATCH", "many")
    result = CliRunner().invoke(root, ["doctor", "--json", "--home", str(tmp_path)])
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["ok"] is False and "OPTIQ_MAX_BATCH" in told["checks"][-1]["found"]


def test_a_wired_limit_that_leaves_the_system_too_little() -> None:
    memory = 64 * 2**30
    assert checks.wired_check(0, memory).verdict == "ok"
    assert checks.wired_check(48 * 1024, memory).verdict == "ok"
    warned = checks.wired_check(63 * 1024, memory)
    assert warned.verdict == "warn" and "wired_limit_mb=0" in warned.mend
