"""How training and serving share the machine: a pace for the trainers, from 0 (hold) to 1 (as fast as it can)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Literal

from optiq_daemon.errors import UnavailableError
from optiq_daemon.jobs.runner import JobRun
from optiq_daemon.live import LiveRequest, LiveTable

Policy = Literal["share", "pause-when-busy", "exclusive"]
POLICIES: tuple[Policy, ...] = ("share", "pause-when-busy", "exclusive")

LOOK_S = 0.25
# After the last request, before a held trainer goes on.
QUIET_S = 1.0
SLOWEST = 1 / 16
FASTER = 0.1
# Below this share of the limit the trainers get more.
CALM = 0.8


class DecodeClock:
    """Seconds between two tokens of a stream, over the last interval; the slowest stream counts."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def latency(self, requests: Iterable[LiveRequest], now: float) -> float:
        """The longest mean gap since the last call, 0 if no stream was decoding all the time."""
        worst, seen = 0.0, {}
        for request in requests:
            if request.phase != "decode":
                continue
            tokens, since = self._seen.get(request.request_id, (request.completion_tokens, request.last_token))
            seen[request.request_id] = (request.completion_tokens, request.last_token)
            if request.completion_tokens > tokens:
                worst = max(worst, (request.last_token - since) / (request.completion_tokens - tokens))
            else:
                worst = max(worst, now - request.last_token)
        self._seen = seen
        return worst


class Pacer:
    """Sets the pace of all trainers by a policy.

    `share`: as fast as they can while tokens come within the limit; slower, down to a sixteenth, while they do not.
    `pause-when-busy`: held while a request is served. `exclusive`: new requests are refused while a job trains, and the
    trainer begins when the last one has ended.

    Args:
        limit_s: seconds between tokens that `share` keeps to.
        runs: what trains now.
    """

    def __init__(self, policy: Policy, limit_s: float, live: LiveTable, runs: Callable[[], Iterable[JobRun]]) -> None:
        self.policy = policy
        self._limit_s = limit_s
        self._live = live
        self._runs = runs
        self._clock = DecodeClock()
        self._pace = 1.0
        self._busy_at = 0.0

    def check_request(self) -> None:
        """Refuse a request if training has the machine to itself.

        Raises:
            UnavailableError: it has.
        """
        if self.policy != "exclusive":
            return
        training = [run.record for run in self._runs()]
        if training:
            left = max((record.progress.seconds_left for record in training if record.progress), default=0.0)
            raise UnavailableError(
                f"{training[0].id} trains, and training_policy is exclusive",
                reason="TRAINING_EXCLUSIVE",
                retry_seconds=min(max(left, 1.0), 60.0),
            )

    async def run(self) -> None:
        """Set the pace again and again."""
        while True:
            runs = [run for run in self._runs() if run.trainer is not None]
            if runs:
                pace = self.pace(time.monotonic())
                for run in runs:
                    await run.set_pace(pace)
            await asyncio.sleep(LOOK_S)

    def pace(self, now: float) -> float:
        """The pace from now on."""
        requests = self._live.requests()
        if requests:
            self._busy_at = now
        if self.policy == "exclusive":
            return 0.0 if requests else 1.0
        if self.policy == "pause-when-busy":
            return 0.0 if now - self._busy_at < QUIET_S else 1.0
        latency = self._clock.latency(requests, now)
        if latency > self._limit_s:
            self._pace = max(SLOWEST, self._pace / 2)
        elif latency < CALM * self._limit_s:
            self._pace = min(1.0, self._pace + FASTER)
        return self._pace
