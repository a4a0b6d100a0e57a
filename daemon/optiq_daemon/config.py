"""Settings of the daemon: flags > environment (``OPTIQ_*``) > ``config.toml`` > defaults.

Every value knows where it came from. An error names the file or variable, the key, and what would be right.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from optiq_client.paths import (
    SocketPathError,
    checked_socket_path,
    config_path,
    engine_socket_path,
    home_path,
    socket_path,
)
from optiq_core.errors import KVConfigError, OptiqError

ENVIRONMENT_PREFIX = "OPTIQ_"

Watch = Literal["events", "polling"]
BaseMismatch = Literal["refuse", "warn"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
TrainingPolicy = Literal["share", "pause-when-busy", "exclusive"]
Tls = Literal["off", "generate", "files"]


class ConfigError(OptiqError):
    """A setting that cannot be used."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values as used; seconds and milliseconds as the names say."""

    home: str = ""
    model: Annotated[str, msgspec.Meta(min_length=1)] = "embedded"
    load_in: Literal["", "4bit", "6bit", "8bit", "mxfp4"] = ""
    address: str = ""
    http_host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    tls: Tls = "off"
    tls_certificate: str = ""
    tls_private_key: str = ""
    tls_client_ca: str = ""
    require_tokens: bool = False
    settle_ms: Annotated[int, msgspec.Meta(ge=10, le=60_000)] = 250
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    max_queue: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 256
    kv: Annotated[str, msgspec.Meta(min_length=1)] = "float"
    kv_config: str = ""
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 512
    kv_cache_mb: Annotated[int, msgspec.Meta(ge=0)] = 0
    prefix_cache_mb: Annotated[int, msgspec.Meta(ge=0)] = 512
    default_max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 256
    default_temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    default_top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    default_top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    watch: Watch = "events"
    reconcile_interval_s: Annotated[float, msgspec.Meta(ge=0.2, le=3600)] = 5.0
    base_mismatch: BaseMismatch = "refuse"
    keep_versions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    keep_versions_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 0.0
    adapter_budget_mb: Annotated[float, msgspec.Meta(ge=0, le=10_000_000)] = 0.0
    keep_alive_s: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 0.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    trace_endpoint: str = ""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 20.0
    trainer_silence_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    trainer_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    training_memory_mb: Annotated[float, msgspec.Meta(ge=0, le=10_000_000)] = 0.0
    training_jobs: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    training_slice_s: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 900.0
    training_policy: TrainingPolicy = "share"
    training_latency_ms: Annotated[float, msgspec.Meta(gt=0, le=3_600_000)] = 250.0

    @property
    def home_path(self) -> Path:
        """The daemon's folder."""
        return Path(self.home)


# What each key means, for `optiq config show` and for the help of `optiq serve`.
DESCRIPTIONS: dict[str, str] = {
    "home": "Folder of this daemon: sockets, drop folder, store, jobs, logs.",
    "model": "Base model: 'embedded', a local mlx-lm folder, a .gguf file, or a hub id.",
    "load_in": "Quantize an unquantized base at load: 4bit, 6bit, 8bit or mxfp4; empty for as it is.",
    "address": "Where clients connect: empty for the Unix socket in the home's run folder, "
    "unix:/path for another one, or host:port for TCP; other machines may reach it only with TLS and tokens.",
    "http_host": "Address of the HTTP gateway; other machines may reach it only with TLS and tokens.",
    "http_port": "Port of the HTTP gateway (OpenAI's and Anthropic's APIs, metrics); 0 for none.",
    "tls": "TLS of a TCP address, and of an HTTP address that is not loopback: off, generate (a certificate in the "
    "home's tls folder), or files.",
    "tls_certificate": "With tls = files: PEM file with the certificate chain.",
    "tls_private_key": "With tls = files: PEM file with the private key.",
    "tls_client_ca": "PEM file; clients on TCP must then show a certificate that it signed (mTLS).",
    "require_tokens": "Ask for a token on the Unix socket too.",
    "settle_ms": "Milliseconds that a dropped folder must be still before it is taken.",
    "max_batch": "Most requests decoded in one step.",
    "max_queue": "Most requests waiting for a place in the batch; more are refused.",
    "kv": "KV cache of every layer: float, or METHOD:BITS such as turboquant:4, rotated:4 or affine:8; a third number "
    "is how many recent tokens are kept as they came (64; affine: 0).",
    "kv_config": "File with the KV cache of each layer, as `optiq kv-cache` writes it; empty for `kv` everywhere.",
    "prefill_chunk": "Most prompt tokens processed at once; fewer while requests decode, so that none stalls.",
    "kv_cache_mb": "Memory for the KV caches of all running requests; more wait. 0: half of what the base leaves free.",
    "prefix_cache_mb": "Memory for the KV caches of earlier prompts, used by prompts that begin the same way; 0: none.",
    "default_max_tokens": "Tokens to generate at most, where a request does not say.",
    "default_temperature": "Temperature where a request does not say; 0 for greedy.",
    "default_top_p": "Nucleus mass where a request does not say; 1 for off.",
    "default_top_k": "Most likely tokens to keep where a request does not say; 0 for off.",
    "watch": "events or polling: how changes of the drop folder are noticed; network file systems need polling.",
    "reconcile_interval_s": "Seconds between looks at the drop folder for changes that raised no event.",
    "base_mismatch": "refuse or warn: what to do with adapters that record the digest of another base.",
    "keep_versions": "Versions that each adapter name keeps for rollback, the served one included.",
    "keep_versions_days": "Days that a version is kept after another took its place; 0 for no limit.",
    "adapter_budget_mb": "Megabytes (1e6) of adapters in the engine at a time; 0: a quarter of what the base leaves.",
    "keep_alive_s": "Seconds without a request after which an adapter leaves the engine; 0 for no limit.",
    "log_level": "debug, info, warning or error.",
    "log_format": "text, or json: one object a line, with request id, tenant, adapter and timings as fields.",
    "trace_endpoint": "Where OpenTelemetry traces go, such as http://127.0.0.1:4318/v1/traces; empty for none.",
    "drain_seconds": "Seconds that running requests get to finish when the daemon is told to stop.",
    "trainer_silence_s": "Seconds without a sign of life after which a trainer is killed.",
    "trainer_attempts": "Trainer processes that may die in a row without a new checkpoint.",
    "training_memory_mb": "Megabytes (1e6) that running training jobs may take together; a job that needs more is "
    "refused, with advice. 0: what is free.",
    "training_jobs": "Most training jobs that run at once, as far as the planner says that they fit together.",
    "training_slice_s": "Seconds after which a training job makes room for one with a better claim; 0 for never.",
    "training_policy": "While a job trains: share (it slows down where tokens come slower than training_latency_ms), "
    "pause-when-busy (it holds while a request is served), or exclusive (new requests are refused).",
    "training_latency_ms": "Milliseconds between two tokens of a stream above which sharing trainers slow down.",
}

# Flags of `optiq serve` that are not named after their key.
_FLAGS = {
    "http_host": "--host",
    "http_port": "--port",
    "default_max_tokens": "--max-tokens",
    "default_temperature": "--temp",
    "default_top_p": "--top-p",
    "default_top_k": "--top-k",
}


def flag_of(key: str) -> str:
    """The flag of `optiq serve` that sets `key`."""
    return _FLAGS.get(key) or "--" + key.replace("_", "-")


class Configuration(msgspec.Struct, frozen=True):
    """Settings and, for each key, where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load_configuration(
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Configuration:
    """Merge the four sources and check the result.

    Args:
        flags: values by key; None means not given.
        environment: `os.environ` unless given.
        file: the TOML file; the user's `config.toml` unless given. It may be missing.

    Raises:
        ConfigError: a value or key that cannot be used.
    """
    environment = os.environ if environment is None else environment
    file = config_path() if file is None else file
    values: dict[str, Any] = {}
    origins = dict.fromkeys(DESCRIPTIONS, "default")
    for key, value in _read_toml(file).items():
        values[key] = _convert(key, value, f"{file}: {key}", strict=True)
        origins[key] = str(file)
    for key in DESCRIPTIONS:
        variable = ENVIRONMENT_PREFIX + key.upper()
        if environment.get(variable):
            values[key] = _convert(key, environment[variable], variable, strict=False)
            origins[key] = variable
    for key, value in (flags or {}).items():
        if key not in DESCRIPTIONS:
            raise ConfigError(f"{key} is not a setting; settings are {', '.join(DESCRIPTIONS)}")
        if value is not None:
            flag = flag_of(key)
            values[key] = _convert(key, value, flag, strict=False)
            origins[key] = flag
    values["home"] = str(home_path(values.get("home") or None))
    settings = msgspec.convert(values, Settings)
    _check_tls(settings, origins)
    _check_address(settings, origins["address"])
    _check_http(settings, origins)
    _check_kv(settings, origins)
    return Configuration(settings, origins)


def _check_kv(settings: Settings, origins: Mapping[str, str]) -> None:
    from optiq_core.kv.config import parse_uniform, read_kv_config

    try:
        uniform = parse_uniform(settings.kv)
    except KVConfigError as error:
        raise ConfigError(f"{origins['kv']}: {error}") from None
    if not settings.kv_config:
        return
    if uniform is not None:
        raise ConfigError(
            f"{origins['kv']} and {origins['kv_config']} both say how layers cache; "
            "leave one out, or add `method` to the entries of the file"
        )
    read_kv_config(Path(settings.kv_config).expanduser())


def bind_address(settings: Settings) -> str:
    """What to listen on and to dial: `unix:/path` or `host:port`.

    Raises:
        ConfigError: the Unix socket's path is too long.
    """
    if settings.address and not settings.address.startswith("unix:"):
        return settings.address
    try:
        if settings.address:
            path = Path(settings.address.removeprefix("unix:"))
            return f"unix:{checked_socket_path(path)}"
        engine_socket_path(settings.home_path, "0000")
        return f"unix:{socket_path(settings.home_path)}"
    except SocketPathError as error:
        raise ConfigError(str(error)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        table = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    for key in table:
        if key not in DESCRIPTIONS:
            raise ConfigError(f"{file}: {key}: not a setting; settings are {', '.join(DESCRIPTIONS)}")
    return table


_FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


def _convert(key: str, value: Any, origin: str, *, strict: bool) -> Any:
    try:
        return msgspec.convert(value, _FIELDS[key].type, strict=strict)
    except msgspec.ValidationError as error:
        default = _FIELDS[key].default
        raise ConfigError(f"{origin}: {error}, found {value!r}; the default is {default!r}") from None


def _check_address(settings: Settings, origin: str) -> None:
    address = settings.address
    bind_address(replace(settings, address=""))
    if not address or address.startswith("unix:"):
        bind_address(settings)
        return
    where = f"{origin}: address {address!r}"
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"{where}: expected unix:/path or host:port, for example 127.0.0.1:50070")
    if settings.tls == "off" and not _is_loopback(host):
        raise ConfigError(
            f"{where}: other machines could reach it, which needs TLS and tokens; set tls to generate or files, "
            "or use a loopback address such as 127.0.0.1, [::1] or localhost, or the Unix socket"
        )


def _check_http(settings: Settings, origins: Mapping[str, str]) -> None:
    where = f"{origins['http_host']}: http_host {settings.http_host!r}"
    if not settings.http_port and origins["http_host"] != "default":
        raise ConfigError(f"{where}: the HTTP gateway has no port; add one, for example --port 8080")
    if settings.tls == "off" and not _is_loopback(settings.http_host):
        raise ConfigError(
            f"{where}: other machines could reach it, which needs TLS and tokens; set tls to generate or files, "
            "or use a loopback address such as 127.0.0.1, ::1 or localhost"
        )


def is_public(settings: Settings) -> bool:
    """Whether other machines could reach the address."""
    address = settings.address
    return bool(address) and not address.startswith("unix:") and not _is_loopback(address.rpartition(":")[0])


def http_is_public(settings: Settings) -> bool:
    """Whether other machines could reach the HTTP gateway, which then has TLS."""
    return settings.http_port != 0 and not _is_loopback(settings.http_host)


def _check_tls(settings: Settings, origins: Mapping[str, str]) -> None:
    files = ("tls_certificate", "tls_private_key")
    for key in files:
        if settings.tls == "files" and not getattr(settings, key):
            raise ConfigError(f"{key}: tls = files needs it: the path of a PEM file")
        if settings.tls != "files" and getattr(settings, key):
            raise ConfigError(f"{origins[key]}: {key} is set, but tls is {settings.tls}; set tls = files")
    if settings.tls == "off" and settings.tls_client_ca:
        raise ConfigError(f"{origins['tls_client_ca']}: tls_client_ca is set, but tls is off")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
