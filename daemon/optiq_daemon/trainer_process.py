"""The trainer process: one job, in a process of its own that the daemon may kill and start again.

``python -m optiq_daemon.trainer_process --job-dir DIR``

``DIR/job.json`` says what to train. Events go to stdout as JSON lines (:mod:`optiq_core.train.events`), the log to
stderr. A line ``cancel`` on stdin ends the job at its next step; ``stop``, the end of stdin or SIGTERM save a
checkpoint first; ``pace 0.5`` has it rest for half of the time, ``pace 0`` until another pace comes. Started on a
folder with a checkpoint, it goes on from there.

Exit codes: 0 succeeded or cancelled, 1 failed, 3 stopped, to be resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import msgspec

from optiq_core.base.load_in import LoadIn
from optiq_core.errors import OptiqError, TrainingError
from optiq_core.train.config import TrainConfig
from optiq_core.train.events import (
    Cancelled,
    Event,
    Failed,
    Heartbeat,
    Succeeded,
    encode_event,
)
from optiq_core.train.metrics import MetricsFile

log = logging.getLogger("optiq.trainer")

HEARTBEAT_SECONDS = 2.0
# Below the engine, so that answers come first: about a quarter of a core that both want, not a tenth.
NICENESS = 5
# BLAS threads wait for each other by spinning: beside a busy engine, a thread on every core is many times slower than
# half of them, which on two idle cores cost a ninth (185 instead of 208 tokens/s of the embedded model).
BLAS_THREADS = max(1, (os.cpu_count() or 2) // 2)
PACE = re.compile(r"pace [01]\.\d{1,6}|pace [01]")
# As MLX's allocators, the system and Metal say it.
NO_MEMORY = re.compile(
    r"unable to allocate|out ?of ?memory|insufficient memory|bad_alloc|resource limit|cannot allocate", re.IGNORECASE
)
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 3


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of ``job.json``: base folder, how it is quantized at load, settings, and the names that the log shows.

    ``limit_bytes`` of array memory are never exceeded on purpose; 0 is no limit.
    """

    base_path: str
    load_in: LoadIn | None = None
    config: TrainConfig
    adapter_id: str
    job: str
    limit_bytes: int = 0


class Signals:
    """What the daemon asked for last; ``cancel`` is final."""

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._stop = threading.Event()
        self._told = threading.Condition()
        self._pace = 1.0
        self._worked_since = time.monotonic()

    def poll(self) -> str:
        if self._cancel.is_set():
            return "cancel"
        return "stop" if self._stop.is_set() else "go"

    def cancel(self) -> None:
        self._cancel.set()
        self._wake()

    def stop(self) -> None:
        self._stop.set()
        # A signal handler may have interrupted whoever holds the condition: a thread wakes the resting run.
        threading.Thread(target=self._wake, daemon=True).start()

    def pace(self, pace: float) -> None:
        with self._told:
            self._pace = min(max(pace, 0.0), 1.0)
            self._told.notify_all()

    def rest(self) -> None:
        """After some work, wait as long as the pace asks for, or until something else is asked."""
        worked = time.monotonic() - self._worked_since
        with self._told:
            began = time.monotonic()
            while self.poll() == "go" and self._pace < 1:
                left = worked * (1 / self._pace - 1) - (time.monotonic() - began) if self._pace else None
                if left is not None and left <= 0:
                    break
                self._told.wait(left)
        self._worked_since = time.monotonic()

    def _wake(self) -> None:
        with self._told:
            self._told.notify_all()

    def read(self, lines: BinaryIO) -> None:
        """Follow commands until the stream ends, which means that the daemon is gone."""
        for line in lines:
            command = line.strip().decode(errors="replace")
            if command == "cancel":
                self.cancel()
            elif command == "stop":
                self.stop()
            elif PACE.fullmatch(command):
                self.pace(float(command.split()[1]))
            elif command:
                log.warning("unknown command %r; known are cancel, stop and pace", command)
        self.stop()


class EventPipe:
    """Writes events to the daemon, from any thread. When the daemon is gone, the run is asked to stop."""

    def __init__(self, descriptor: int, signals: Signals) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()
        self._signals = signals

    def send(self, event: Event) -> None:
        with self._lock:
            try:
                self._file.write(encode_event(event))
            except OSError:
                self._signals.stop()

    def beat(self) -> None:
        """Send heartbeats until the process ends."""
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            self.send(Heartbeat())


def run_job(job_dir: Path, pipe: EventPipe, signals: Signals, threads: int) -> int:
    """Train the job of a folder; returns the exit code. Every outcome but ``stopped`` is also an event.

    Args:
        threads: of BLAS.
    """
    adapter = job_dir / "adapter"
    try:
        job = _read_job(job_dir / "job.json")
        if adapter.is_dir():
            # The adapter appears whole, so the process ended between the rename and the event.
            pipe.send(Succeeded(str(adapter)))
            return EXIT_DONE
        outcome = _train(job, job_dir, pipe, signals, threads)
    except OptiqError as error:
        log.error("%s", error)
        pipe.send(Failed(str(error)))
        return EXIT_FAILED
    except Exception as error:  # the daemon needs a reason; the log has the trace
        log.exception("training failed")
        reason = f"{type(error).__name__}: {error}"
        pipe.send(Failed(reason, memory=True, at_bytes=_reached(reason)) if no_memory(error) else Failed(reason))
        return EXIT_FAILED
    if outcome == "stopped":
        return EXIT_STOPPED
    pipe.send(Cancelled() if outcome == "cancelled" else Succeeded(str(adapter)))
    return EXIT_DONE


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory, or Metal's resources, ran out."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


def _reached(reason: str) -> int:
    """Array memory at the failed allocation, what was asked for included."""
    import mlx.core as mx

    asked = re.search(r"allocate (\d+) bytes", reason)
    return mx.get_active_memory() + (int(asked[1]) if asked else 0)


def _train(job: Job, job_dir: Path, pipe: EventPipe, signals: Signals, threads: int) -> str:
    from optiq_core.base.device import setup_device

    profile = setup_device(threads)
    log.info("%s: training %s on %s", job.job, job.adapter_id, profile.name)
    from optiq_core.base.loader import load_base
    from optiq_core.base.paths import cache_path
    from optiq_core.planner.ceilings import system_free_bytes
    from optiq_core.train.data import load_data
    from optiq_core.train.guard import MemoryGuard
    from optiq_core.train.trainer import Signal, train

    metrics = MetricsFile(job_dir / "metrics.jsonl")

    def on_event(event: Event) -> None:
        metrics.add(event)
        pipe.send(event)

    def control() -> Signal:
        signals.rest()
        asked = signals.poll()
        return "cancel" if asked == "cancel" else "stop" if asked == "stop" else "go"

    base = load_base(Path(job.base_path), profile=profile, load_in=job.load_in)
    data = load_data(job.config.data_path, base.tokenizer, job.config, cache_dir=cache_path() / "tokens")
    result = train(
        base,
        job.config,
        data=data,
        out_dir=job_dir / "adapter",
        checkpoint_dir=job_dir / "checkpoint",
        on_event=on_event,
        control=control,
        guard=MemoryGuard(job.limit_bytes, system_free_bytes if profile.kind == "cpu" else None),
    )
    log.info("%s: %s after step %d", job.job, result.outcome, result.step)
    return result.outcome


def _read_job(path: Path) -> Job:
    try:
        job = msgspec.json.decode(path.read_bytes(), type=Job)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror})") from error
    except msgspec.DecodeError as error:
        raise TrainingError(f"{path.name}: {error}") from error
    job.config.validate()
    return job


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="optiq_daemon.trainer_process", description=__doc__)
    parser.add_argument("--job-dir", type=Path, required=True)
    parser.add_argument("--alone", action="store_true", help="take every core: nothing is served meanwhile")
    arguments = parser.parse_args(argv)
    job_dir: Path = arguments.job_dir
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if not arguments.alone:
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
    signals = Signals()

    def on_signal(number: int, frame: FrameType | None) -> None:
        signals.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    # Libraries that print must not write into the event stream: give the pipe a descriptor of its own.
    pipe = EventPipe(os.dup(1), signals)
    os.dup2(2, 1)
    pipe.send(Heartbeat())
    for target in (pipe.beat, lambda: signals.read(sys.stdin.buffer)):
        threading.Thread(target=target, daemon=True).start()
    threads = (os.cpu_count() or 2) if arguments.alone else BLAS_THREADS
    return run_job(job_dir, pipe, signals, threads)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # The stdin thread may still be reading, which would make the interpreter wait for its lock on exit.
    os._exit(code)
