"""`optiq.v1.GenerationService`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from optiq_daemon.observers import Serve
from optiq_protos.v1 import generation_pb2, generation_pb2_grpc


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Hands requests to the path that all faces of the daemon share."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve

    def Generate(
        self, request: generation_pb2.GenerateRequest, _: Any
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """Stream one completion."""
        return self._serve(request)
