"""A certificate of one's own, clients that need one too, tokens in files, and what a deleted tenant leaves behind."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from optiq_client import AdapterState, Client, ConnectionFailed, NotFound, PermissionDenied, Tls, TrainingConfig, paths
from tests.adapters import write_tiny_adapter
from tests.integration.conftest import Daemon, eventually
from tests.integration.test_daemon_tenants import free_address

Key = ec.EllipticCurvePrivateKey


class Authority:
    """A certificate authority, and what it signs, as PEM files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        folder.mkdir()
        self.file = self._write("ca", self._signed(self.name, self.key, authority=True), self.key).ca_file

    def issue(self, name: str) -> Tls:
        """A certificate and key for 127.0.0.1, with this authority as the one to trust."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._write(name, self._signed(subject, key, authority=False), key)

    def _signed(self, subject: x509.Name, key: Key, *, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def _write(self, name: str, certificate: x509.Certificate, key: Key) -> Tls:
        pem = self.folder / f"{name}.pem"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = self.folder / f"{name}-key.pem"
        plain = serialization.NoEncryption()
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        ca = pem if name == "ca" else self.folder / "ca.pem"
        return Tls(ca_file=ca, certificate_file=pem, key_file=secret)


class Served(NamedTuple):
    daemon: Daemon
    address: str
    owner: Client
    tls: Tls
    token: str


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ours", "ours")


@pytest.fixture(scope="module")
def served(tiny_folder: Path, authority: Authority) -> Iterator[Served]:
    """A daemon with certificates of an authority that also signs its clients'."""
    address, own = free_address(), authority.issue("daemon")
    daemon = Daemon(
        *("--model", str(tiny_folder), "--settle-ms", "100", "--address", address, "--tls", "files"),
        *("--tls-certificate", str(own.certificate_file), "--tls-private-key", str(own.key_file)),
        *("--tls-client-ca", str(authority.file)),
    )
    try:
        owner = daemon.start()
        owner.tenants.create("acme")
        _, token = owner.tenants.create_token("acme")
        yield Served(daemon, address, owner, authority.issue("client"), token)
        assert daemon.stop() == 0, daemon.output()
    finally:
        daemon.remove()


def optiq(served: Served, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``optiq`` against the TCP address, as another machine would."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPTIQ_")}
    environment |= {"OPTIQ_ADDRESS": served.address, "OPTIQ_CONFIG": str(served.daemon.home / "none.toml"), **variables}
    command = [sys.executable, "-m", "optiq_daemon", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_client_needs_a_certificate_of_the_authority_and_a_token(
    served: Served, authority: Authority, tmp_path: Path
) -> None:
    with Client(served.address, tls=served.tls, token=served.token) as client:
        assert client.generate([5, 9, 13], max_tokens=2).read() is not None
        assert client.tenant == "acme"
    foreign = Authority(tmp_path / "theirs", "theirs").issue("client")
    for tls in (
        Tls(ca_file=authority.file),
        Tls(authority.file, foreign.certificate_file, foreign.key_file),
        Tls(foreign.ca_file, served.tls.certificate_file, served.tls.key_file),
    ):
        with Client(served.address, tls=tls, token=served.token) as nobody, pytest.raises(ConnectionFailed):
            nobody.adapters.list(timeout=3)
    with Client(served.address, tls=served.tls) as nameless, pytest.raises(PermissionDenied):
        nameless.adapters.list()


def test_the_command_line_takes_certificates_and_a_token_file(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "acme.token"
    file.write_text(f"{served.token}\n")
    mtls = {
        "OPTIQ_CA_FILE": str(served.tls.ca_file),
        "OPTIQ_CLIENT_CERTIFICATE": str(served.tls.certificate_file),
        "OPTIQ_CLIENT_KEY": str(served.tls.key_file),
    }
    for arguments, variables in (
        (("--token-file", str(file)), {}),
        ((), {"OPTIQ_TOKEN_FILE": str(file)}),
        ((), {"OPTIQ_TOKEN": served.token}),
    ):
        shown = optiq(served, "tenants", "show", "--json", *arguments, **mtls, **variables)
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["name"] == "tenants/acme"
    wrong = tmp_path / "wrong.token"
    wrong.write_text(served.token[:-1] + ("x" if served.token[-1] != "x" else "y"))
    refused = optiq(served, "adapters", "ls", "--token-file", str(wrong), **mtls)
    assert refused.returncode == 1 and "the token is not valid" in refused.stderr
    missing = optiq(served, "adapters", "ls", "--token-file", str(tmp_path / "absent"), **mtls)
    assert missing.returncode != 0 and "absent: cannot be read" in missing.stderr
    secret = served.token.split("_", 3)[3]
    assert secret not in refused.stderr + missing.stderr


def test_no_token_is_in_a_log_a_file_or_an_argument(served: Served, tmp_path: Path) -> None:
    """Also after calls with it were refused, failed, and were logged."""
    with Client(served.address, tls=served.tls, token=served.token) as client:
        with pytest.raises(NotFound):
            client.adapters.get("absent")
        with pytest.raises(NotFound):
            client.generate("hi", adapter="absent").read()
    with Client(served.address, tls=served.tls, token=served.token + "x") as wrong, pytest.raises(PermissionDenied):
        wrong.adapters.list()
    log = (served.daemon.home / "logs" / "daemon.log").read_text()
    assert "NOT_FOUND" in log and "UNAUTHENTICATED" in log, "the calls were logged"
    secret = served.token.split("_", 3)[3]
    files = [file for file in served.daemon.home.rglob("*") if file.is_file() and not file.is_symlink()]
    assert {"daemon.log", "engine.log", "optiq.sqlite3"} <= {file.name for file in files}
    assert not [file for file in files if secret.encode() in file.read_bytes()]
    assert served.daemon.process is not None
    daemon = psutil.Process(served.daemon.process.pid)
    processes = [daemon, *daemon.children(recursive=True)]
    assert len(processes) >= 2
    assert not any(secret in " ".join([*p.cmdline(), *p.environ().values()]) for p in processes)


def test_a_tenant_is_deleted_with_all_that_it_has(served: Served, tmp_path: Path) -> None:
    owner, home = served.owner, served.daemon.home
    unix = f"unix:{paths.socket_path(home)}"
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one two three"}\n' * 8)
    owner.tenants.create("brief")
    _, token = owner.tenants.create_token("brief")
    write_tiny_adapter(home / "adapters" / "brief" / "mine", seed=7)
    with Client(home=home, tenant="brief") as brief:
        assert eventually(lambda: brief.adapters.get("mine").state is AdapterState.RESIDENT)
        digest = brief.adapters.get("mine").digest
        brief.tenants.share("mine")
        brief.routes.set("main", {"mine": 1})
        brief.generate([5, 9], adapter="mine", max_tokens=2).read()
        jobs = [brief.training.create(f"job-{n}", TrainingConfig(data_path=str(data), iters=100_000)) for n in (1, 2)]
        refused = optiq(served, "tenants", "delete", "brief", "--yes", OPTIQ_ADDRESS=unix)
        assert refused.returncode == 1 and "1 adapters and some jobs" in refused.stderr, refused.stderr
        assert brief.adapters.get("mine").digest == digest
    assert len(jobs) == 2
    gone = optiq(served, "tenants", "delete", "brief", "--force", "--yes", OPTIQ_ADDRESS=unix)
    assert gone.returncode == 0, gone.stderr
    assert "brief" not in {tenant.id for tenant in owner.tenants.list()}
    assert owner.tenants.shared() == [] and not (home / "adapters" / "brief").exists()
    assert eventually(lambda: not (home / "store" / "adapters" / digest).exists())
    assert not [folder for folder in (home / "jobs").iterdir() if "job-1" in folder.name or "job-2" in folder.name]
    with Client(served.address, tls=served.tls, token=token) as late, pytest.raises(PermissionDenied):
        late.adapters.list()
    # The id is free again, and nothing of the old one comes back.
    owner.tenants.create("brief")
    with Client(home=home, tenant="brief") as brief:
        assert (brief.adapters.list(), brief.routes.list(), brief.training.list()) == ([], [], [])
        assert brief.tenants.usage() == []
    owner.tenants.delete("brief")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--address", "0.0.0.0:50070"), "needs TLS and tokens"),
        (("--address", "192.0.2.1:50070"), "needs TLS and tokens"),
        (("--address", "0.0.0.0:50070", "--tls", "generate"), "there is no token yet"),
        (("--host", "0.0.0.0", "--port", "8080"), "needs TLS and tokens"),
        (("--host", "0.0.0.0", "--port", "8080", "--tls", "generate"), "there is no token yet"),
        (("--address", "127.0.0.1:50070", "--tls", "files"), "tls_certificate"),
        (("--tls-client-ca", "ca.pem"), "tls is off"),
    ],
)
def test_what_others_could_reach_does_not_start_unprotected(
    options: tuple[str, ...], message: str, tiny_folder: Path
) -> None:
    daemon = Daemon("--model", str(tiny_folder), *options)
    try:
        daemon.start(wait=False).close()
        assert daemon.process is not None
        assert daemon.process.wait(60) == 1
        assert message in daemon.output()
        assert "listening" not in daemon.output()
    finally:
        daemon.remove()
