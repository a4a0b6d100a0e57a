"""`optiq chat`, `optiq logs` and completion against the real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optiq_core
from optiq_client import AdapterState, Client
from tests.integration.conftest import Daemon, eventually

PIRATE = Path(optiq_core.__file__).parent / "experiments" / "ready" / "pirate"


def environment(daemon: Daemon) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPTIQ_") or k == "OPTIQ_CACHE"}
    return {**kept, "OPTIQ_HOME": str(daemon.home), "OPTIQ_CONFIG": str(daemon.home / "config.toml")}


def optiq(daemon: Daemon, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optiq_daemon", *arguments]
    return subprocess.run(
        command, env=environment(daemon), input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_chat_switches_adapters_and_remembers(daemon: Daemon, client: Client) -> None:
    client.adapters.import_folder(PIRATE, "pirate")
    try:
        assert eventually(lambda: client.adapters.get("pirate").state is AdapterState.RESIDENT)
        lines = ["Say hello.", "/adapter pirate", "/retry", "/adapter nobody", "/adapters", "/nonsense", "/quit", "no"]
        done = optiq(daemon, "chat", "--max-tokens", "4", stdin="\n".join(lines) + "\n")
        assert done.returncode == 0, done.stderr
        base, pirate = done.stdout.splitlines()
        question = [{"role": "user", "content": "Say hello."}]
        assert base == client.generate(question, max_tokens=4).read()
        assert pirate == client.generate(question, adapter="pirate", max_tokens=4).read() != base
        assert "nobody" in done.stderr and "* pirate" in done.stderr and "/nonsense is not a command" in done.stderr
        absent = optiq(daemon, "chat", "--adapter", "absent")
        assert absent.returncode == 1 and "absent" in absent.stderr
        script = {"_OPTIQ_COMPLETE": "bash_complete", "COMP_WORDS": "optiq chat --adapter pi", "COMP_CWORD": "3"}
        command = [sys.executable, "-c", "from optiq_daemon.cli.main import main; main()"]
        offered = subprocess.run(
            command, env={**environment(daemon), **script}, capture_output=True, text=True, timeout=30, check=True
        )
        assert offered.stdout.splitlines() == ["plain,pirate"]
    finally:
        client.adapters.delete("pirate")


def test_an_interrupt_ends_the_answer_and_not_the_chat(daemon: Daemon, client: Client) -> None:
    chat = subprocess.Popen(
        [sys.executable, "-u", "-m", "optiq_daemon", "chat", "--max-tokens", "4000"],
        env=environment(daemon),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert chat.stdin is not None and chat.stdout is not None
        chat.stdin.write(b"Tell me a very long story.\n")
        chat.stdin.flush()
        assert chat.stdout.read(1)
        chat.send_signal(signal.SIGINT)
        assert eventually(lambda: not client.runtime.status().requests)
        assert chat.poll() is None
        output, said = chat.communicate(b"/clear\n", timeout=30)
        assert chat.returncode == 0 and b"(ended)" in said and b"forgotten" in said
        assert output.endswith(b"\n")
    finally:
        chat.kill()
        chat.wait()


def test_logs_follow_the_daemon(daemon: Daemon, client: Client) -> None:
    shown = optiq(daemon, "logs", "-n", "1000")
    assert shown.returncode == 0 and "daemon " in shown.stdout and "engine " in shown.stdout
    following = subprocess.Popen(
        [sys.executable, "-u", "-m", "optiq_daemon", "logs", "daemon", "-f", "-n", "1"],
        env=environment(daemon),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        following.stdout.readline()
        client.generate("hello", max_tokens=1, request_id="followed-request").read()
        until = time.monotonic() + 30
        while "followed-request" not in following.stdout.readline():
            assert time.monotonic() < until
    finally:
        following.kill()
        following.wait()
