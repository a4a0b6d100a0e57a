"""TLS of the TCP address: a certificate of the user's own, or one that the daemon makes for itself."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from optiq_daemon.config import ConfigError, Settings

VALID_DAYS = 825  # the most that Apple's TLS stack accepts
RENEW_DAYS = 30


def server_credentials(settings: Settings) -> Any:
    """gRPC credentials for the TCP address; None if it is to be plain.

    Raises:
        ConfigError: a file that cannot be read, or half of a pair.
    """
    if settings.tls == "off":
        return None
    certificate, key = certificate_files(settings)
    clients = _read(Path(settings.tls_client_ca), "tls_client_ca") if settings.tls_client_ca else None
    pair = _read(key, "tls_private_key"), _read(certificate, "tls_certificate")
    return grpc.ssl_server_credentials([pair], root_certificates=clients, require_client_auth=clients is not None)


def certificate_files(settings: Settings) -> tuple[Path, Path]:
    """Certificate and key that `tls` means, for gRPC and HTTP alike; made if they are the daemon's own."""
    if settings.tls == "files":
        return Path(settings.tls_certificate), Path(settings.tls_private_key)
    return generated(settings.home_path, settings.address.rpartition(":")[0], settings.http_host)


def certificate_path(home: Path) -> Path:
    """The certificate that the daemon makes: what clients give as their CA file."""
    return home / "tls" / "certificate.pem"


def generated(home: Path, *hosts: str) -> tuple[Path, Path]:
    """Certificate and key in the home's `tls` folder; made if missing, nearly over, or for other names."""
    certificate, key = certificate_path(home), home / "tls" / "private-key.pem"
    names = _names(hosts)
    if not (key.is_file() and certificate.is_file() and _still_good(certificate, names)):
        certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(certificate, key, names)
    return certificate, key


def _names(hosts: Iterable[str]) -> list[str]:
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    # An address that means every interface is no name that anybody dials.
    names += [bare for host in hosts if (bare := host.strip("[]")) not in ("", "0.0.0.0", "::", "unix")]
    return list(dict.fromkeys(names))


def _general_names(names: list[str]) -> list[Any]:
    from cryptography import x509

    found: list[Any] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _still_good(certificate: Path, names: list[str]) -> bool:
    from cryptography import x509

    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        alternative = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=RENEW_DAYS)
    return loaded.not_valid_after_utc > soon and set(_general_names(names)) <= set(alternative)


def _make(certificate: Path, key: Path, names: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "optiq daemon")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_private(key, pem)
    _write_private(certificate, made.public_bytes(serialization.Encoding.PEM))


def _write_private(path: Path, content: bytes) -> None:
    staging = path.with_suffix(".tmp")
    staging.unlink(missing_ok=True)
    with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    staging.replace(path)


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from None
