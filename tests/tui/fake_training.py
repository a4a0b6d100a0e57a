"""Jobs of the fake daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.rpc import code_pb2

from optiq_protos.v1 import training_pb2, training_pb2_grpc
from tests.tui.fake_parts import Broadcast, Noted, fail

ENDED = {
    training_pb2.JOB_STATE_SUCCEEDED,
    training_pb2.JOB_STATE_FAILED,
    training_pb2.JOB_STATE_CANCELLED,
    training_pb2.JOB_STATE_REFUSED,
}


class FakeTraining(Noted, training_pb2_grpc.TrainingServiceServicer):
    """Jobs in a dictionary; nothing trains. Setters push to the open watches."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, training_pb2.TrainingJob] = {}
        # Lines of trainers' logs, by job.
        self.logs: dict[str, list[str]] = {}
        self.progress: dict[str, list[training_pb2.TrainingProgress]] = {}
        self.plan: training_pb2.TrainingPlan | None = None
        self._job_changes = Broadcast()

    def put_job(self, job: training_pb2.TrainingJob, *, report: bool = False) -> None:
        """Set a job; with ``report``, its progress is also one new point of its curve."""
        self.jobs[job.name] = job
        response = training_pb2.WatchTrainingJobResponse(job=job)
        if report:
            self.progress.setdefault(job.name, []).append(job.progress)
            response.progress.CopyFrom(job.progress)
        self._job_changes.send(response)

    async def _job(self, name: str, context: Any) -> training_pb2.TrainingJob:
        if name not in self.jobs:
            await fail(context, code_pb2.NOT_FOUND, f"no job {name}", "JOB_NOT_FOUND")
        return self.jobs[name]

    async def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        job = training_pb2.TrainingJob(
            name=f"{request.parent}/jobs/job-{len(self.jobs) + 1}",
            state=training_pb2.JOB_STATE_QUEUED,
            adapter_id=request.adapter_id,
            config=request.config,
        )
        self.put_job(job)
        return training_pb2.CreateTrainingJobResponse(job=job)

    async def PlanTrainingJob(self, request: Any, context: Any) -> Any:
        self.calls.append(request)
        if self.plan is None:
            await fail(context, code_pb2.FAILED_PRECONDITION, "the engine is not serving", "ENGINE_RESTARTING")
        return training_pb2.PlanTrainingJobResponse(plan=self.plan)

    async def GetTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.GetTrainingJobResponse(job=await self._job(request.name, context))

    async def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        return training_pb2.ListTrainingJobsResponse(jobs=list(self.jobs.values()))

    async def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.CancelTrainingJobResponse(
            job=await self._to(request, context, training_pb2.JOB_STATE_CANCELLED)
        )

    async def PauseTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.PauseTrainingJobResponse(
            job=await self._to(request, context, training_pb2.JOB_STATE_PAUSED)
        )

    async def ResumeTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.ResumeTrainingJobResponse(
            job=await self._to(request, context, training_pb2.JOB_STATE_QUEUED)
        )

    async def _to(self, request: Any, context: Any, state: int) -> training_pb2.TrainingJob:
        self.calls.append(request)
        job = training_pb2.TrainingJob()
        job.CopyFrom(await self._job(request.name, context))
        job.state = state  # type: ignore[assignment]
        self.put_job(job)
        return job

    async def DeleteTrainingJob(self, request: Any, context: Any) -> Any:
        await self._job(request.name, context)
        del self.jobs[request.name]
        return training_pb2.DeleteTrainingJobResponse()

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        job = await self._job(request.name, context)
        reply = training_pb2.WatchTrainingJobResponse
        replayed = [reply(job=job, progress=p) for p in self.progress.get(request.name, [])] or [reply(job=job)]
        if job.state in ENDED:
            for update in replayed:
                yield update
            return
        # Subscribed before the first is sent: an update between the two would be lost.
        async for update in self._job_changes.receive(replayed):
            if update.job.name == request.name:
                yield update
                if update.job.state in ENDED:
                    return

    async def TailTrainingLog(self, request: Any, context: Any) -> AsyncIterator[Any]:
        job = await self._job(request.name, context)
        yield training_pb2.TailTrainingLogResponse(lines=self.logs.get(request.name, []))
        if request.follow and job.state not in ENDED:
            await asyncio.Event().wait()
