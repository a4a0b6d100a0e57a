# ruff: noqa: ASYNC109 - `timeout` is the deadline that goes over the wire
"""``client.training`` of both clients: the job queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from optiq_client import calls_training as calls
from optiq_client import types as t
from optiq_client.jobs import AT_ONCE, PLAIN, JobPublication, JobSchedule

if TYPE_CHECKING:
    from optiq_client.aio import AsyncClient, AsyncStream
    from optiq_client.client import Client, Stream


class Training:
    """``client.training``: the job queue."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        adapter_id: str,
        config: t.TrainingConfig,
        *,
        schedule: JobSchedule = AT_ONCE,
        publication: JobPublication = PLAIN,
        request_id: str = "",
        timeout: float | None = None,
    ) -> t.Job:
        """Queue a job whose result is served as ``adapter_id``. The same ``request_id`` returns the same job."""
        call = calls.create_job(
            self._client.tenant,
            adapter_id,
            config,
            schedule=schedule,
            publication=publication,
            request_id=request_id,
        )
        return self._client.run(call, timeout)

    def plan(self, config: t.TrainingConfig, *, timeout: float | None = 180.0) -> t.TrainingPlan:
        """Predict what a job would take, and what would make it fit; queues nothing. Takes seconds."""
        return self._client.run(calls.plan_job(self._client.tenant, config), timeout)

    def get(self, job: str, *, timeout: float | None = None) -> t.Job:
        """One job, by id or full name."""
        return self._client.run(calls.get_job(self._client.tenant, job), timeout)

    def list(self, *, timeout: float | None = None) -> list[t.Job]:
        """All jobs of the tenant, newest first."""
        found: list[t.Job] = []
        token = ""
        while True:
            page = self._client.run(calls.list_jobs(self._client.tenant, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    def cancel(self, job: str, *, timeout: float | None = None) -> t.Job:
        """End the job at its next step."""
        return self._client.run(calls.cancel_job(self._client.tenant, job), timeout)

    def update(
        self,
        job: str,
        *,
        priority: int | None = None,
        after: Sequence[str] | None = None,
        not_before: datetime | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> t.Job:
        """Change when a job runs, as far as it is given; one that runs is not stopped. An empty ``after`` clears it."""
        call = calls.update_job(
            self._client.tenant, job, priority=priority, after=after, not_before=not_before, etag=etag
        )
        return self._client.run(call, timeout)

    def pause(self, job: str, *, timeout: float | None = None) -> t.Job:
        """Hold the job: at its next step if it runs, with a checkpoint. Its memory is given back."""
        return self._client.run(calls.pause_job(self._client.tenant, job), timeout)

    def resume(self, job: str, *, timeout: float | None = None) -> t.Job:
        """Let a held job go on from its checkpoint."""
        return self._client.run(calls.resume_job(self._client.tenant, job), timeout)

    def publish(self, job: str, *, timeout: float | None = None) -> t.Job:
        """Publish the adapter of a job that its gate kept."""
        return self._client.run(calls.publish_job(self._client.tenant, job), timeout)

    def delete(self, job: str, *, timeout: float | None = None) -> None:
        """Remove a job that has ended, with its checkpoints; its adapter stays."""
        self._client.run(calls.delete_job(self._client.tenant, job), timeout)

    def watch(self, job: str, *, timeout: float | None = None) -> Stream[t.JobUpdate]:
        """The progress so far, then live; ends when the job has ended."""
        return self._client.stream(calls.watch_job(self._client.tenant, job), timeout)

    def log(
        self, job: str, *, lines: int = 100, follow: bool = False, timeout: float | None = None
    ) -> Stream[tuple[str, ...]]:
        """The last ``lines`` that the job's trainer wrote, in groups; with ``follow`` what it adds until it ends."""
        return self._client.stream(calls.job_log(self._client.tenant, job, lines, follow=follow), timeout)


class AsyncTraining:
    """``client.training``: the job queue."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        adapter_id: str,
        config: t.TrainingConfig,
        *,
        schedule: JobSchedule = AT_ONCE,
        publication: JobPublication = PLAIN,
        request_id: str = "",
        timeout: float | None = None,
    ) -> t.Job:
        """Queue a job whose result is served as ``adapter_id``. The same ``request_id`` returns the same job."""
        call = calls.create_job(
            self._client.tenant,
            adapter_id,
            config,
            schedule=schedule,
            publication=publication,
            request_id=request_id,
        )
        return await self._client.run(call, timeout)

    async def plan(self, config: t.TrainingConfig, *, timeout: float | None = 180.0) -> t.TrainingPlan:
        """Predict what a job would take, and what would make it fit; queues nothing. Takes seconds."""
        return await self._client.run(calls.plan_job(self._client.tenant, config), timeout)

    async def get(self, job: str, *, timeout: float | None = None) -> t.Job:
        """One job, by id or full name."""
        return await self._client.run(calls.get_job(self._client.tenant, job), timeout)

    async def list(self, *, timeout: float | None = None) -> list[t.Job]:
        """All jobs of the tenant, newest first."""
        found: list[t.Job] = []
        token = ""
        while True:
            page = await self._client.run(calls.list_jobs(self._client.tenant, token), timeout)
            found += page.items
            if not (token := page.next_token):
                return found

    async def cancel(self, job: str, *, timeout: float | None = None) -> t.Job:
        """End the job at its next step."""
        return await self._client.run(calls.cancel_job(self._client.tenant, job), timeout)

    async def update(
        self,
        job: str,
        *,
        priority: int | None = None,
        after: Sequence[str] | None = None,
        not_before: datetime | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> t.Job:
        """Change when a job runs, as far as it is given; one that runs is not stopped. An empty ``after`` clears it."""
        call = calls.update_job(
            self._client.tenant, job, priority=priority, after=after, not_before=not_before, etag=etag
        )
        return await self._client.run(call, timeout)

    async def pause(self, job: str, *, timeout: float | None = None) -> t.Job:
        """Hold the job: at its next step if it runs, with a checkpoint. Its memory is given back."""
        return await self._client.run(calls.pause_job(self._client.tenant, job), timeout)

    async def resume(self, job: str, *, timeout: float | None = None) -> t.Job:
        """Let a held job go on from its checkpoint."""
        return await self._client.run(calls.resume_job(self._client.tenant, job), timeout)

    async def publish(self, job: str, *, timeout: float | None = None) -> t.Job:
        """Publish the adapter of a job that its gate kept."""
        return await self._client.run(calls.publish_job(self._client.tenant, job), timeout)

    async def delete(self, job: str, *, timeout: float | None = None) -> None:
        """Remove a job that has ended, with its checkpoints; its adapter stays."""
        await self._client.run(calls.delete_job(self._client.tenant, job), timeout)

    def watch(self, job: str, *, timeout: float | None = None) -> AsyncStream[t.JobUpdate]:
        """The progress so far, then live; ends when the job has ended."""
        return self._client.stream(calls.watch_job(self._client.tenant, job), timeout)

    def log(
        self, job: str, *, lines: int = 100, follow: bool = False, timeout: float | None = None
    ) -> AsyncStream[tuple[str, ...]]:
        """The last ``lines`` that the job's trainer wrote, in groups; with ``follow`` what it adds until it ends."""
        return self._client.stream(calls.job_log(self._client.tenant, job, lines, follow=follow), timeout)
