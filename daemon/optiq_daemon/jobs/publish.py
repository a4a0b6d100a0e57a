"""What becomes of a trained adapter: through the gate if it was asked for, under its name, behind a route."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from optiq_core.errors import AdapterError, OptiqError
from optiq_core.train.config import TrainConfig
from optiq_core.train.records import VALID_FILE
from optiq_daemon.children import Child
from optiq_daemon.errors import InvalidRequestError, UnavailableError
from optiq_daemon.gate_process import Scores
from optiq_daemon.ingest import Ingest
from optiq_daemon.jobs.admission import JOB_FILE
from optiq_daemon.jobs.book import JobBook
from optiq_daemon.jobs.records import GateResult, JobRecord, Publication
from optiq_daemon.names import AdapterKey, RouteKey, check_id
from optiq_daemon.records import AdapterRecord
from optiq_daemon.registry import Registry
from optiq_daemon.routes import BASE, Routes, Shape, Target
from optiq_daemon.states import JobState

log = logging.getLogger(__name__)

MODULE = "optiq_daemon.gate_process"
LOG_NAME = "gate.log"
PATIENCE_S = 3600.0
# Between tries to install what was trained, and how often the file system may refuse.
INSTALL_PAUSE_S = 1.0
INSTALL_TRIES = 5
# The weights of a route that a job makes or changes add up to this.
WHOLE = 100


class Publisher:
    """Publishes trained adapters.

    Args:
        folder: one folder per job below it.
    """

    def __init__(self, book: JobBook, ingest: Ingest, registry: Registry, routes: Routes, folder: Path) -> None:
        self._book = book
        self._ingest = ingest
        self._registry = registry
        self._routes = routes
        self._folder = folder
        self._gates: dict[str, Child] = {}

    def cancel(self, record: JobRecord) -> None:
        """Have a gate that scores this job's adapter end; its adapter is then kept, and not published."""
        if record.id in self._gates:
            self._gates[record.id].kill()

    async def finish(self, record: JobRecord, adapter: Path) -> None:
        """End a job whose adapter is made."""
        if record.publication.gate and record.gate is None:
            self._book.set(record, record.state, "scoring the adapter against the present version")
            failure = ""
            try:
                record.gate = await self._score(record, adapter)
            except OptiqError as error:
                failure = f"it could not be scored: {error}"
            if record.cancel_requested:
                self._book.set(record, JobState.CANCELLED, "cancelled as asked, while its adapter was scored")
                return
            if record.gate is None or not record.gate.passed:
                self._kept(record, _verdict(record.gate) if record.gate is not None else failure)
                return
        await self.publish(record, adapter)

    async def publish(self, record: JobRecord, adapter: Path) -> None:
        """Serve the adapter under the job's name, and end the job."""
        try:
            said = await self._publish(record, adapter)
        except AdapterError as error:
            self._book.set(record, JobState.FAILED, f"the trained adapter was refused: {error}")
        except (OptiqError, OSError) as error:
            self._book.set(record, JobState.FAILED, f"the trained adapter in {adapter} could not be installed: {error}")
        else:
            if record.gate is not None and record.gate.passed:
                said = f"{_verdict(record.gate)}; {said}" if said else _verdict(record.gate)
            self._book.set(record, JobState.SUCCEEDED, said)

    async def _publish(self, record: JobRecord, adapter: Path) -> str:
        key = AdapterKey(record.tenant, record.adapter_id)
        route = RouteKey(record.tenant, record.publication.route) if record.publication.route else None
        if route is not None:
            self._hold(route, key)
        served = await self._installed(key, adapter)
        record.adapter_digest = served.digest
        version = self._registry.history.find(key, served.digest)
        if route is None or version is None:
            return ""
        weight = record.publication.route_weight
        new = f"{key.adapter}@v{version.number}"
        found = self._routes.find(route)
        if found is None:
            self._routes.create(route, Shape(targets=(Target(BASE, WHOLE - weight), Target(new, weight))))
        else:
            targets = with_share(found.shape.targets, new, weight)
            shape = msgspec.structs.replace(found.shape, targets=targets)
            self._routes.update(route, shape, f"{new} at {weight} of {WHOLE}, from {record.id}")
        return f"{new} gets {weight} of {WHOLE} requests of {route.name}"

    async def _installed(self, key: AdapterKey, adapter: Path) -> AdapterRecord:
        """Install what was trained, as soon as there is an engine: one that has just died is no fault of the job."""
        failures = 0
        while True:
            try:
                return await self._ingest.install(key, adapter, "training")
            except UnavailableError:
                pass
            except OSError:
                # Somebody may have moved the drop folder away for a moment; a full disk stays full.
                failures += 1
                if failures == INSTALL_TRIES:
                    raise
            await asyncio.sleep(INSTALL_PAUSE_S)

    def _hold(self, route: RouteKey, key: AdapterKey) -> None:
        """Pin what a route serves now, so that its requests do not follow the name to the new version."""
        present = self._present(key)
        found = self._routes.find(route)
        if present is None:
            return
        if found is None:
            self._routes.create(route, Shape(targets=(Target(present, WHOLE),)))
        elif any(target.target == key.adapter for target in found.shape.targets):
            pinned = (Target(present if t.target == key.adapter else t.target, t.weight) for t in found.shape.targets)
            shape = msgspec.structs.replace(found.shape, targets=tuple(pinned))
            self._routes.update(route, shape, f"pinned {present} before a new version")

    def _present(self, key: AdapterKey) -> str | None:
        record = self._registry.find(key)
        version = self._registry.history.find(key, record.digest) if record is not None and record.digest else None
        return f"{key.adapter}@v{version.number}" if version is not None else None

    async def _score(self, record: JobRecord, adapter: Path) -> GateResult:
        key = AdapterKey(record.tenant, record.adapter_id)
        present = self._present(key)
        data = record.publication.gate_path or str(Path(record.config.data_path) / VALID_FILE)
        folder = self._folder / record.id
        command = [MODULE, "--job", str(folder / JOB_FILE), "--adapter", str(adapter), "--data", data]
        if present is not None:
            digest = self._registry.record(key).digest
            with self._registry.residency.lease(digest):
                command += ["--present", str(self._registry.blobs.path(digest))]
                scores = await self._run(record.id, command)
        else:
            scores = await self._run(record.id, command)
        return GateResult(
            passed=scores.loss < scores.present_loss,
            loss=scores.loss,
            present_loss=scores.present_loss,
            present=present or BASE,
            tokens=scores.tokens,
            data_path=data,
        )

    async def _run(self, job: str, command: list[str]) -> Scores:
        child = self._gates[job] = await Child.spawn(command, self._folder / job / LOG_NAME, read_stdout=True)
        stdout = child.process.stdout
        assert stdout is not None
        try:
            answer = await asyncio.wait_for(stdout.read(), PATIENCE_S)
            await child.wait()
            return msgspec.json.decode(answer, type=Scores)
        except (TimeoutError, msgspec.DecodeError):
            raise OptiqError(child.tail() or f"the gate ended with {child.how_it_ended()}") from None
        finally:
            del self._gates[job]
            if child.returncode is None:
                child.kill()
                await asyncio.shield(child.wait())

    def _kept(self, record: JobRecord, why: str) -> None:
        said = f"kept but not published: {why}; `optiq jobs publish {record.id}` publishes it all the same"
        self._book.events.append("job.kept", record.key.name, why)
        self._book.set(record, JobState.SUCCEEDED, said)


def check_publication(publication: Publication, config: TrainConfig) -> None:
    """Refuse what could not be done when the job ends.

    Raises:
        InvalidRequestError: names the field.
    """
    if publication.route:
        check_id(publication.route, "publication.route")
        if not 1 <= publication.route_weight <= WHOLE:
            raise InvalidRequestError.of(
                "publication.route_weight", f"must be 1 to {WHOLE}, is {publication.route_weight}"
            )
    if not publication.gate:
        return
    if path := publication.gate_path:
        if "\0" in path or not Path(path).is_absolute() or not Path(path).is_file():
            raise InvalidRequestError.of("publication.gate_path", f"{path} must be an absolute path of a JSONL file")
    elif not (Path(config.data_path) / VALID_FILE).is_file():
        raise InvalidRequestError.of("publication.gate", f"needs {VALID_FILE} in {config.data_path}, or gate_path")


def with_share(targets: tuple[Target, ...], new: str, share: int) -> tuple[Target, ...]:
    """Targets of a route in which a new one gets `share` of 100 and the others keep their proportions."""
    others = [target for target in targets if target.target != new]
    total = sum(target.weight for target in others)
    if not total:
        return (*others, Target(new, WHOLE))
    # A hundredth of a request for the least of them is still something.
    scaled = (Target(t.target, max(1, round(t.weight * (WHOLE - share) / total)) if t.weight else 0) for t in others)
    return (*scaled, Target(new, share))


def _verdict(gate: GateResult) -> str:
    how = "beats" if gate.passed else "does not beat"
    return (
        f"a loss of {gate.loss:.4f} on {Path(gate.data_path).name} {how} the {gate.present_loss:.4f} of {gate.present}"
    )
