"""What a client shows the daemon: its token, and on TCP its certificates.

A token goes over a Unix socket, over the machine's own loopback, or over TLS; never over a network in the clear, and
never into a message: what is raised here names variables and files, not what they hold.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from optiq_client.channel import channel_options


class CredentialsError(ValueError):
    """A token or certificate that cannot be used."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates for a TCP address, as PEM files.

    Attributes:
        ca_file: who signed the daemon's certificate; with ``tls = generate`` that is ``HOME/tls/certificate.pem``.
            The system's authorities if None.
        certificate_file: this client's own, for a daemon that asks for one (mTLS).
        key_file: its private key.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_environment(cls) -> Self | None:
        """From ``$OPTIQ_CA_FILE``, ``$OPTIQ_CLIENT_CERTIFICATE`` and ``$OPTIQ_CLIENT_KEY``; None if none is set."""
        names = ("OPTIQ_CA_FILE", "OPTIQ_CLIENT_CERTIFICATE", "OPTIQ_CLIENT_KEY")
        files = [Path(os.environ[name]).expanduser() if os.environ.get(name) else None for name in names]
        return cls(*files) if any(files) else None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            CredentialsError: one cannot be read.
        """
        ca, certificate, key = (_read(file) for file in (self.ca_file, self.certificate_file, self.key_file))
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True, slots=True)
class Credentials:
    """How one client dials and what it sends along. The token is not part of its repr."""

    address: str
    tls: Tls | None
    metadata: tuple[tuple[str, str], ...] | None = field(repr=False)

    @classmethod
    def resolve(cls, address: str, token: str | None, tls: Tls | None) -> Self:
        """From arguments, then environment.

        Raises:
            CredentialsError: a file that cannot be read, or a token that would cross a network in the clear.
        """
        tcp = not address.startswith("unix:")
        tls = tls or (Tls.from_environment() if tcp else None)
        found = token if token is not None else _token_from_environment()
        if found and tcp and tls is None and not _is_loopback(address):
            raise CredentialsError(
                f"a token is set, and {address} would get it in the clear; use TLS: set OPTIQ_CA_FILE to the daemon's "
                "certificate, or give the client tls=Tls()"
            )
        return cls(address, tls if tcp else None, (("authorization", f"Bearer {found}"),) if found else None)

    @property
    def tenant(self) -> str:
        """Whose token it is; ``default`` without one."""
        if self.metadata:
            prefix, _, rest = self.metadata[0][1].removeprefix("Bearer ").partition("_")
            if prefix == "optiq" and "_" in rest:
                return rest.partition("_")[0]
        return "default"

    def channel(self, module: Any) -> Any:
        """A channel of ``grpc`` or ``grpc.aio``."""
        options = channel_options(self.address)
        if self.tls is None:
            return module.insecure_channel(self.address, options=options)
        return module.secure_channel(self.address, self.tls.credentials(), options=options)


def _token_from_environment() -> str:
    if token := os.environ.get("OPTIQ_TOKEN", "").strip():
        return token
    file = os.environ.get("OPTIQ_TOKEN_FILE", "")
    return read_token_file(Path(file)) if file else ""


def read_token_file(path: Path) -> str:
    """The token in a file; its first line that is not empty.

    Raises:
        CredentialsError: it cannot be read, or is empty.
    """
    text = (_read(path.expanduser()) or b"").decode("utf-8", "replace").strip()
    if not text:
        raise CredentialsError(f"{path}: holds no token")
    return text.splitlines()[0].strip()


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path}: cannot be read: {error.strerror}") from None


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
