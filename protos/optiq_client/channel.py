"""How the sync and the async client dial: message sizes, keepalive, and which calls grpc itself retries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_TIMEOUT = 30.0
"""Seconds that a call with one answer may take unless ``timeout=`` says otherwise; streams have no limit."""

# Calls that may run twice with the effect of once. CreateTrainingJob is one because it carries a request_id.
RETRIED = (
    ("optiq.v1.AdapterService", "ListAdapters"),
    ("optiq.v1.AdapterService", "GetAdapter"),
    ("optiq.v1.AdapterService", "LoadAdapter"),
    ("optiq.v1.AdapterService", "UnloadAdapter"),
    ("optiq.v1.TrainingService", "CreateTrainingJob"),
    ("optiq.v1.TrainingService", "GetTrainingJob"),
    ("optiq.v1.TrainingService", "ListTrainingJobs"),
    ("optiq.v1.TrainingService", "CancelTrainingJob"),
    ("optiq.v1.TrainingService", "PauseTrainingJob"),
    ("optiq.v1.TrainingService", "ResumeTrainingJob"),
    ("optiq.v1.RuntimeService", "GetStatus"),
)

SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": service, "method": method} for service, method in RETRIED],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def channel_options(address: str) -> list[tuple[str, str | int]]:
    """Options of a channel to ``address``."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.enable_retries", 1),
        # A daemon that comes back is found within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # The daemon is on this machine or on the local network: a web proxy never helps.
        ("grpc.enable_http_proxy", 0),
        # Clients of different homes in one process must not share connections.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if address.startswith("unix:"):
        options.append(("grpc.default_authority", "localhost"))
    return options


def method(kind: Callable[..., Any], path: str, response: type[Any]) -> Any:
    """One method of a channel.

    Args:
        kind: how it streams, such as the channel's ``unary_stream``.
        path: ``/package.Service/Method``.
        response: the message type that comes back.
    """
    return kind(path, request_serializer=_serialized, response_deserializer=response.FromString)


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())
