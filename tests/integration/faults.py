"""Kills daemon, engine and trainer with SIGKILL, and takes the watcher's folder away, at random moments; then audits.

``python -m tests.integration.faults --kills 200 --seed 1``

The moments are those of installs, swaps, evictions, requests, training, and of the publishing of a trained adapter. The
watcher is a thread of the daemon: it dies with the daemon, and by itself when the folder that it watches is removed.

Prints its seed. The same seed makes the same decisions; the moments at which they meet the processes differ.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from optiq_client import AdapterState, Client, JobState, OptiqClientError, Started, TrainingConfig
from optiq_core.adapters.format import digest_folder, read_manifest
from optiq_core.errors import AdapterError
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually

NAMES = [f"adapter-{n}" for n in range(8)]
CONTENTS = 4
# Four of the eight fit.
BUDGET_MB = "0.03"
ENGINE_KILLS_IN_A_ROW = 3
KILLS_PER_AUDIT = 8
# Names that are trained, one job at a time; what the digest will be nobody knows.
TRAINED = [f"trained-{n}" for n in range(3)]
JOB_STEPS = 12
ABSENT = ""
Possible = set[str]


def digest_of(folder: Path) -> str:
    """The folder's version; empty if there is no whole one."""
    try:
        return digest_folder(folder, read_manifest(folder))
    except AdapterError:
        return ABSENT


class FaultRun:
    """One daemon, somebody who changes adapters, somebody who uses them, and the killer."""

    def __init__(self, seed: int, base: Path, say: Callable[[str], None]) -> None:
        self.seed = seed
        self.say = say
        self.random = random.Random(seed)
        self.daemon = Daemon(
            *("--model", str(base), "--settle-ms", "50", "--keep-versions", "2", "--reconcile-interval-s", "0.5"),
            *("--adapter-budget-mb", BUDGET_MB, "--drain-seconds", "1"),
        )
        self.sources = self.daemon.home / "sources"
        self.digests = {
            n: digest_of(write_tiny_adapter(self.sources / str(n), seed=n, rank=4)) for n in range(CONTENTS)
        }
        # What each name's folder may hold: one digest, or several after a call that was cut off.
        self.possible: dict[str, Possible] = {name: {ABSENT} for name in NAMES}
        self.done: Counter[str] = Counter()
        self.data = self.daemon.home / "data"
        self.data.mkdir()
        (self.data / "train.jsonl").write_text('{"text": "one two three four five six"}\n' * 8)
        # Every attempt may be killed: only a job that hangs, or fails by itself, is to fail here.
        (self.daemon.home / "config.toml").write_text("trainer_attempts = 20\n")
        self._jobs = itertools.count()
        self._client: Client | None = None
        self._stop = threading.Event()

    def run(self, kills: int) -> None:
        """Kill so often; raises AssertionError with the seed if anything is lost."""
        self._restart()
        try:
            for begin in range(0, kills, KILLS_PER_AUDIT):
                self._disturb(min(KILLS_PER_AUDIT, kills - begin))
                self._audit()
                self.say(f"seed {self.seed}: {self.kills} kills, {dict(self.done)}")
            assert self.daemon.stop() == 0, self.daemon.output()[-2000:]
        finally:
            self._stop.set()
            self.daemon.remove()

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(count for what, count in self.done.items() if what.startswith("kill "))

    # Disturbing

    def _disturb(self, kills: int) -> None:
        self._stop.clear()
        threads = [
            threading.Thread(target=self._guarded, args=(work, random.Random(self.random.random())), name=name)
            for name, work in (("change", self._change), ("use 1", self._use), ("use 2", self._use))
        ]
        threads.append(threading.Thread(target=self._train_one, name="train"))
        self.failures: list[BaseException] = []
        for thread in threads:
            thread.start()
        in_a_row = 0
        for _ in range(kills):
            # Before the daemon answers, while it takes folders, or in the middle of everything.
            if self.random.random() < 0.7:
                with contextlib.suppress(OptiqClientError):
                    self.client.wait_ready(60)
            time.sleep(self.random.uniform(0, 0.8))
            pid, chance = self._engine_pid(), self.random.random()
            if chance < 0.5 and (trainer := self._trainer()) is not None:
                in_a_row = self._kill_trainer(trainer)
            elif pid and in_a_row < ENGINE_KILLS_IN_A_ROW and chance < 0.75:
                in_a_row += 1
                self.done["kill engine"] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                in_a_row = 0
                self.done["kill daemon"] += 1
                self.daemon.stop(signal.SIGKILL)
                self._restart()
        self._stop.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), f"seed {self.seed}: '{thread.name}' hangs"
        assert not self.failures, f"seed {self.seed}: {self.failures}"

    def _kill_trainer(self, trainer: psutil.Process) -> int:
        """Kill the trainer, or wait for its end and kill the daemon while it publishes what was trained."""
        if self.random.random() < 0.5:
            self.done["kill trainer"] += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.kill()
            return 0
        with contextlib.suppress(psutil.TimeoutExpired):
            trainer.wait(20)
        time.sleep(self.random.uniform(0, 0.1))
        self.done["kill daemon at publish"] += 1
        self.daemon.stop(signal.SIGKILL)
        self._restart()
        return 0

    def _trainer(self) -> psutil.Process | None:
        assert self.daemon.process is not None
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.daemon.process.pid).children():
                if "optiq_daemon.trainer_process" in child.cmdline():
                    return child
        return None

    def _train_one(self) -> None:
        """Queue one job; the queue has to bring it to its end, whatever is killed."""
        number = next(self._jobs)
        config = TrainingConfig(
            data_path=str(self.data),
            rank=4,
            target_modules=("q_proj", "v_proj"),
            iters=JOB_STEPS,
            batch_size=2,
            seed=number + 1,
            steps_per_checkpoint=2,
        )
        while not self._stop.is_set():
            with contextlib.suppress(OptiqClientError, ValueError):
                name = TRAINED[number % len(TRAINED)]
                # A call that was cut off is made again: the same request_id is the same job.
                self.client.training.create(name, config, request_id=f"job-{number}", timeout=20)
                self.done["job"] += 1
                return
            time.sleep(0.05)

    def _restart(self) -> None:
        old, self._client = self._client, self.daemon.start(wait=False)
        if old is not None:
            old.close()

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def _engine_pid(self) -> int:
        try:
            return self.client.runtime.status(timeout=2).engine.pid
        except (OptiqClientError, ValueError):
            return 0

    def _guarded(self, work: Callable[[random.Random], None], choose: random.Random) -> None:
        while not self._stop.is_set():
            try:
                work(choose)
            except (OptiqClientError, ValueError):
                # The daemon is away, the call was cut off, or its channel was closed.
                self.done["call cut off or refused"] += 1
                time.sleep(0.02)
            except BaseException as failure:
                self.failures.append(failure)
                return

    def _change(self, choose: random.Random) -> None:
        name, content = choose.choice(NAMES), choose.randrange(CONTENTS)
        folder, source, digest = self.daemon.drop / name, self.sources / str(content), self.digests[content]
        action = choose.choice(
            ("copy", "copy", "swap", "delete", "import", "import", "remove", "rollback", "unload", "watch")
        )
        self.done[action] += 1
        time.sleep(choose.uniform(0, 0.1))
        if action == "copy":
            shutil.copytree(source, folder, dirs_exist_ok=True)
            self.possible[name] = {digest}
        elif action == "swap":
            aside = self.daemon.drop / f".{name}-coming"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(source, aside)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            self.possible[name] = {digest}
        elif action == "delete":
            shutil.rmtree(folder, ignore_errors=True)
            self.possible[name] = {ABSENT}
        elif action == "import":
            before = self.possible[name]
            self.possible[name] = before | {digest}
            self.client.adapters.import_folder(source, name, timeout=20)
            self.possible[name] = {digest}
        elif action == "remove":
            self.possible[name] = self.possible[name] | {ABSENT}
            self.client.adapters.delete(name, timeout=20)
            self.possible[name] = {ABSENT}
        elif action == "rollback":
            self.client.adapters.rollback(name, timeout=20)
        elif action == "watch":
            self._end_watch(choose)
        else:
            self.client.adapters.unload(name, timeout=20)

    def _end_watch(self, choose: random.Random) -> None:
        """Remove the folder that the watcher watches, which ends its thread, and put all back under a new one."""
        root, aside = self.daemon.drop.parent, self.daemon.home / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        with contextlib.suppress(OSError):
            for tenant in root.iterdir():
                tenant.rename(aside / tenant.name)
            root.rmdir()
            time.sleep(choose.uniform(0, 0.2))
        root.mkdir(exist_ok=True)
        for tenant in list(aside.iterdir()):
            # The daemon, or a job that published, has made the folder anew meanwhile.
            shutil.copytree(tenant, root / tenant.name, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def _use(self, choose: random.Random) -> None:
        generation = self.client.generate(
            [5, 9, 13], adapter=choose.choice(NAMES), max_tokens=choose.choice((1, 8, 60)), timeout=20
        )
        for event in generation.events():
            if isinstance(event, Started):
                assert event.adapter_digest in self.digests.values()
            if choose.random() < 0.02:
                generation.cancel()
        self.done["answered"] += 1

    # Looking

    def _audit(self) -> None:
        """What must be true whenever it has become quiet."""
        client = self.client
        client.wait_ready(120)
        try:
            assert eventually(self._jobs_ended, 600, every=0.2), "a job hangs"
            failed = [job for job in client.training.list() if job.state is not JobState.SUCCEEDED]
            assert not failed, failed
            assert eventually(self._quiet, 60), "it does not become quiet"
            for adapter in {job.adapter_id for job in client.training.list()}:
                assert digest_of(self.daemon.drop / adapter), f"{adapter} was trained and is not there"
            self._audit_drop_folder()
            self._audit_store()
            for adapter in client.adapters.list():
                generation = client.generate([5, 9, 13], adapter=adapter.id, max_tokens=2)
                started = next(event for event in generation.events() if isinstance(event, Started))
                assert started.adapter_digest == adapter.digest, adapter
            assert eventually(lambda: client.runtime.status().engine.resident_adapters <= 4)
        except AssertionError as error:
            facts = {name: sorted(found) for name, found in self.possible.items()}
            log = (self.daemon.home / "logs" / "daemon.log").read_text()[-4000:]
            raise AssertionError(f"seed {self.seed}: {error}; folders may hold {facts}\n{log}") from error

    def _quiet(self) -> bool:
        """Whether every folder is taken, every lease released, and every row free."""
        client = self.client
        adapters = client.adapters.list()
        folders = {f.name: digest_of(f) for f in self.daemon.drop.iterdir() if not f.name.startswith(".")}
        taken = {a.id: a.held_back_digest or a.digest for a in adapters} == folders
        still = all(a.state in (AdapterState.AVAILABLE, AdapterState.RESIDENT) for a in adapters)
        leases = sum(a.active_leases for a in adapters)
        versions = sum(v.active_leases for a in adapters for v in client.adapters.history(a.id))
        status = client.runtime.status()
        idle = not status.requests and not status.engine.active_rows and not status.engine.queued_requests
        return taken and still and leases == 0 and versions == 0 and idle

    def _jobs_ended(self) -> bool:
        return all(job.state.ended for job in self.client.training.list())

    def _audit_drop_folder(self) -> None:
        for name in NAMES:
            found = digest_of(self.daemon.drop / name)
            assert found in self.possible[name], f"{name} holds {found[:12] or 'nothing'}"
            self.possible[name] = {found}
        left = [f.name for f in self.daemon.drop.iterdir() if f.name.startswith(".") and "coming" not in f.name]
        assert not left, f"left behind in the drop folder: {left}"

    def _audit_store(self) -> None:
        store = self.daemon.home / "store"
        stored = {folder.name: digest_of(folder) for folder in (store / "adapters").iterdir()}
        assert all(name == found for name, found in stored.items()), f"half installed: {stored}"
        kept = {v.digest for a in self.client.adapters.list() for v in self.client.adapters.history(a.id)}
        assert eventually(lambda: {f.name for f in (store / "adapters").iterdir()} == kept), (stored, kept)
        assert eventually(lambda: not list((store / "staging").iterdir())), "staging is not empty"
        uri = f"file:{self.daemon.home / 'optiq.sqlite3'}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            rows = dict(connection.execute("SELECT id, digest FROM adapters").fetchall())
            documents = connection.execute("SELECT id, document FROM adapters").fetchall()
        assert rows == {a.id: a.digest for a in self.client.adapters.list()}
        assert rows == {name: json.loads(document)["digest"] for name, document in documents}


def tiny_base(folder: Path) -> Path:
    """Write the tiny base with a process that may import MLX."""
    code = "import pathlib, sys, tests.unit.tiny as tiny; tiny.save_tiny_base(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=120)
    return folder


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="optiq-") as folder:
        began = time.monotonic()
        run = FaultRun(options.seed, tiny_base(Path(folder) / "base"), lambda text: print(text, flush=True))
        run.run(options.kills)
    summary = {"seed": options.seed, "seconds": round(time.monotonic() - began), **run.done}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
