"""Loss and speed of a run, for its reports."""

from __future__ import annotations


class Meter:
    """Loss and speed: since the last report, and of all steps of this process."""

    def __init__(self) -> None:
        self._steps, self._seconds = 0, 0.0
        self.start_interval()

    def start_interval(self) -> None:
        self._loss, self._loss_tokens = 0.0, 0
        self._tokens, self._interval = 0, 0.0

    def add(self, loss: float, loss_tokens: int, tokens: int, applied: bool, seconds: float) -> None:
        self._steps += 1
        self._seconds += seconds
        self._interval += seconds
        self._tokens += tokens
        if applied:
            self._loss += loss * loss_tokens
            self._loss_tokens += loss_tokens

    @property
    def loss(self) -> float | None:
        return self._loss / self._loss_tokens if self._loss_tokens else None

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._interval if self._interval else 0.0

    @property
    def seconds_per_step(self) -> float:
        return self._seconds / self._steps if self._steps else 0.0
