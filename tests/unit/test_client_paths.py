"""Where files and sockets are."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiq_client import paths


def test_home_from_argument_then_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTIQ_HOME", str(tmp_path / "env"))
    assert paths.home_path() == tmp_path / "env"
    assert paths.home_path(tmp_path / "arg") == tmp_path / "arg"
    monkeypatch.delenv("OPTIQ_HOME")
    assert paths.home_path().name == "optiq"
    monkeypatch.chdir(tmp_path)
    assert paths.home_path("rel") == tmp_path / "rel"


def test_config_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTIQ_CONFIG", str(tmp_path / "c.toml"))
    assert paths.config_path() == tmp_path / "c.toml"
    monkeypatch.delenv("OPTIQ_CONFIG")
    assert paths.config_path().name == "config.toml"


def test_address_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTIQ_HOME", "/h")
    monkeypatch.setenv("OPTIQ_ADDRESS", "localhost:1")
    assert paths.resolve_address("127.0.0.1:9") == "127.0.0.1:9"
    assert paths.resolve_address("/run/x.sock") == "unix:/run/x.sock"
    assert paths.resolve_address(home="/g") == "unix:/g/run/daemon.sock"
    assert paths.resolve_address() == "localhost:1"
    monkeypatch.delenv("OPTIQ_ADDRESS")
    assert paths.resolve_address() == "unix:/h/run/daemon.sock"


def test_long_socket_path_is_refused_with_a_way_out() -> None:
    with pytest.raises(paths.SocketPathError, match="OPTIQ_HOME"):
        paths.socket_path(Path("/" + "x" * 100))
    longest = Path("/" + "x" * 102)
    assert paths.checked_socket_path(longest) == longest
