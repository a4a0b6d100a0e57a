"""Every command that talks to a daemon, run once for people and once with --json against a real one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from optiq_client import Client, JobState, TrainingConfig
from optiq_daemon.cli import main as cli
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually

# Commands that need no daemon, or start one: their own tests run them.
ELSEWHERE = {
    *("serve", "daemon start", "daemon stop", "demo", "tui", "chat", "jobs publish"),
    *(
        "service status",
        "convert",
        "eval",
        "kv-cache",
        "plan",
        "lora train",
        "lora ranks",
        "lora export",
        "experiment run",
        "experiment search",
    ),
    *("experiment report", "service install", "service uninstall", "completion"),
}


def commands(group: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, by what one types."""
    if not isinstance(group, click.Group):
        yield path, group
        return
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, f"{path} {name}".strip())


class Walk:
    """Runs commands and remembers which ones ran."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.capsys = capsys
        self.commands = {path: command for path, command in commands(cli.root) if not path.startswith("bench ")}
        self.ran: set[str] = set()

    def options(self, path: str) -> set[str]:
        return {option for parameter in self.commands[path].params for option in parameter.opts}

    def run(self, path: str, *arguments: str) -> str:
        """Run a command; what it printed."""
        home = ["--home", str(self.home)] if "--home" in self.options(path) else []
        try:
            code = cli.main([*path.split(), *arguments, *home])
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = self.capsys.readouterr()
        assert code == 0, f"optiq {path}: {printed.err}"
        assert "Traceback" not in printed.out + printed.err
        return printed.out

    def both(self, path: str, *arguments: str, again: Callable[[], object] = lambda: None) -> object:
        """Run a command without and with --json; what the second printed.

        Args:
            again: makes the second run possible where the first has changed something.
        """
        self.ran.add(path)
        self.run(path, *arguments)
        again()
        text = self.run(path, *arguments, "--json")
        return [json.loads(line) for line in text.splitlines()] if path == "jobs watch" else json.loads(text)

    def left(self) -> set[str]:
        """Commands that nobody ran."""
        return set(self.commands) - self.ran - ELSEWHERE


@pytest.fixture
def walk(tiny_daemon: Daemon, tiny_client: Client, capsys: pytest.CaptureFixture[str]) -> Iterator[Walk]:
    tenant = tiny_client.tenants.create("walker")
    folder = tiny_daemon.home / "adapters" / "walker"
    try:
        yield Walk(tiny_daemon.home, capsys)
    finally:
        eventually(lambda: not any(job.state is JobState.RUNNING for job in tiny_client.training.list()))
        for name in [adapter.id for adapter in tiny_client.adapters.list() if adapter.id.startswith("walk")]:
            tiny_client.adapters.delete(name)
        tiny_client.tenants.delete(tenant.id, force=True)
        shutil.rmtree(folder, ignore_errors=True)


def adapters(walk: Walk, client: Client, folder: Path) -> None:
    source, other = (str(write_tiny_adapter(folder / f"walk-{seed}", seed=seed)) for seed in (1, 2))
    made = walk.both("adapters import", source, "--name", "walk")
    assert isinstance(made, dict) and made["name"] == "tenants/default/adapters/walk"
    walk.both("adapters upload", other, "--name", "walk")
    for name in ("show", "history", "load", "unload", "pin", "unpin"):
        walk.both(f"adapters {name}", "walk")
    walk.both("adapters keep", "walk", "60")
    walk.both("adapters rollback", "walk", again=lambda: client.adapters.rollback("walk"))
    walk.both("adapters merge", "walk=0.5", "walk@v2=0.5", "--into", "walk-sum")
    for form in ("as-is", "mlx-lm", "peft"):
        walk.both("adapters export", "walk", "--format", form, "--overwrite", "-o", str(folder / form))
    fused = walk.both("adapters fuse", "walk", "-o", str(folder / "fused"), "--overwrite")
    assert isinstance(fused, dict) and Path(fused["path"]).is_dir()
    listed = walk.both("adapters ls")
    assert isinstance(listed, list) and {adapter["name"].rpartition("/")[2] for adapter in listed} >= {"walk"}
    assert walk.both("lora info", str(folder / "mlx-lm"))


def routes(walk: Walk, client: Client) -> None:
    walk.both("routes set", "walk", "v1=3", "base=1", "--fallback", "base", "--shadow", "v2", "--sticky")
    tried = walk.both("routes try", "walk", "--count", "20", "--sticky-key", "someone")
    assert tried
    generated = walk.both("generate", "Hello there", "--route", "walk", "--max-tokens", "2", "--raw")
    assert isinstance(generated, dict)
    for what in ("--decisions", "--shadow", "--history"):
        walk.both("routes show", "walk", what)
    walk.both("routes show", "walk")
    walk.both("routes ls")
    walk.both("routes promote", "walk", "v1")
    walk.both("routes rollback", "walk")
    walk.both("routes delete", "walk", "--yes", again=lambda: client.routes.set("walk", {"base": 1}))


def tenants(walk: Walk, client: Client) -> None:
    limits = ("--weight", "2", "--concurrent-requests", "4", "--tokens-per-minute", "1000", "--queued-jobs", "1")
    walk.both("tenants create", "walker-2", *limits, again=lambda: client.tenants.delete("walker-2"))
    walk.both("tenants update", "walker-2", "--weight", "3")
    walk.both("tenants show", "walker-2")
    made = walk.both("tenants token", "walker-2")
    assert isinstance(made, dict) and made["token"].startswith("optiq_walker-2_")
    walk.both("tenants token", "walker-2", "--list")
    walk.both("tenants ls")
    walk.both("tenants usage", "--all")
    walk.both("tenants share", "walk")
    assert walk.both("tenants share", "--list") == ["tenants/default/adapters/walk"]
    walk.both("tenants share", "walk", "--remove", again=lambda: client.tenants.share("walk"))
    walk.both("tenants delete", "walker-2", "--force", "--yes", again=lambda: client.tenants.create("walker-2"))


def jobs(walk: Walk, client: Client, folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one two three"}\n' * 8)
    walk.both("data check", str(data))
    submitted = walk.both(
        *("jobs submit", "--data", str(data), "--adapter", "walk-job", "--iters", "2", "--rank", "4"),
        again=lambda: client.training.cancel(client.training.list()[0].id),
    )
    assert isinstance(submitted, dict)
    job = submitted["name"].rpartition("/")[2]
    assert walk.both("jobs watch", job)
    walk.both("jobs show", job)
    walk.ran.add("jobs logs")
    written = walk.run("jobs logs", job, "--follow").splitlines()
    assert written and [json.loads(line) for line in walk.run("jobs logs", job, "--json").splitlines()] == written
    walk.both("jobs ls")
    slow = TrainingConfig(data_path=str(data), iters=100_000)
    queued = [client.training.create(f"walk-job-{number}", slow).id for number in (1, 2)]
    walk.both("jobs set", queued[1], "--priority", "5")
    walk.both("jobs pause", queued[1], again=lambda: client.training.resume(queued[1]))
    walk.both("jobs resume", queued[1], again=lambda: client.training.pause(queued[1]))
    walk.both("jobs cancel", queued[0])
    client.training.cancel(queued[1])
    walk.ran.add("jobs rm")
    walk.run("jobs rm", job)


def about_the_daemon(walk: Walk) -> None:
    walk.both("ps")
    walk.both("daemon status")
    walk.both("doctor")
    walk.both("config path")
    walk.both("config show", "--origin")
    walk.ran |= {"logs", "call"}
    assert "AdapterService/ListAdapters" in walk.run("call")
    assert json.loads(walk.run("call", "RuntimeService/GetStatus"))["status"]
    assert "event=" in walk.run("logs", "daemon", "--lines", "50")


@pytest.mark.usefixtures("tiny_daemon")
def test_every_command_works_for_people_and_for_programs(
    walk: Walk, tiny_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIQ_HOME", str(walk.home))
    monkeypatch.setenv("OPTIQ_CONFIG", str(walk.home / "config.toml"))
    adapters(walk, tiny_client, tmp_path)
    routes(walk, tiny_client)
    tenants(walk, tiny_client)
    jobs(walk, tiny_client, tmp_path)
    about_the_daemon(walk)
    walk.both(
        "adapters rm",
        "walk-sum",
        "--yes",
        again=lambda: tiny_client.adapters.merge({"walk": 1, "walk@v2": 1}, "walk-sum"),
    )
    assert walk.left() == set(), "commands that nobody runs: add them here, or to ELSEWHERE with their own tests"


def test_no_command_takes_a_token_as_an_argument() -> None:
    """An argument is in the process list and in the shell's history."""
    taken = {f"{path} {option}" for path, one in commands(cli.root) for p in one.params for option in p.opts}
    assert {text.rpartition(" ")[2] for text in taken if text.endswith("token")} == set()
    assert "generate --token-file" in taken
