"""Frames of the stream between the daemon and its engine process: four bytes of length, big-endian, then a message."""

from __future__ import annotations

from collections.abc import Iterator

_LENGTH_BYTES = 4


def frame(message: bytes) -> bytes:
    """A message with its length in front."""
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message


class FrameReader:
    """Puts a stream of bytes together into messages again."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, data: bytes) -> Iterator[bytes]:
        """Take more of the stream; yields the messages that are whole now."""
        self._held += data
        begin = 0
        try:
            while len(self._held) - begin >= _LENGTH_BYTES:
                body = begin + _LENGTH_BYTES
                end = body + int.from_bytes(self._held[begin:body], "big")
                if end > len(self._held):
                    return
                message = bytes(self._held[body:end])
                begin = end
                yield message
        finally:
            del self._held[:begin]
