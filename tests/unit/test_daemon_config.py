"""Settings: four sources, in order, and errors that say what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiq_daemon.config import DESCRIPTIONS, ConfigError, Settings, bind_address, load_configuration


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "from-file"\nmax_batch = 1\nmax_queue = 1\n')
    environment = {"OPTIQ_MAX_BATCH": "2", "OPTIQ_MAX_QUEUE": "2", "OPTIQ_HOME": str(tmp_path)}
    loaded = load_configuration({"max_queue": 3, "model": None}, environment=environment, file=file)
    settings = loaded.settings
    assert (settings.model, settings.max_batch, settings.max_queue) == ("from-file", 2, 3)
    assert settings.settle_ms == 250 and settings.home_path == tmp_path
    assert loaded.origins["model"] == str(file)
    assert loaded.origins["max_batch"] == "OPTIQ_MAX_BATCH"
    assert loaded.origins["max_queue"] == "--max-queue"
    assert loaded.origins["settle_ms"] == "default"
    assert set(DESCRIPTIONS) == set(loaded.origins) == set(Settings.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch = 0", r"config.toml: max_batch: .*>= 1.*found 0.*default is 16"),
        ('max_batch = "8"', r"config.toml: max_batch: Expected `int`, got `str`"),
        ("max_bach = 8", r"config.toml: max_bach: not a setting; settings are .*max_batch"),
        ("max_batch = ", r"config.toml: not TOML"),
        ('log_level = "loud"', r"config.toml: log_level"),
    ],
)
def test_a_bad_file_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_configuration(environment={}, file=file)


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"OPTIQ_DRAIN_SECONDS: .*found 'soon'"):
        load_configuration(environment={"OPTIQ_DRAIN_SECONDS": "soon"}, file=tmp_path / "none.toml")


@pytest.mark.parametrize("address", ["127.0.0.1:50070", "localhost:1", "[::1]:50070", "unix:/tmp/o.sock", ""])
def test_addresses_that_only_this_machine_reaches(tmp_path: Path, address: str) -> None:
    flags = {"address": address, "home": str(tmp_path)}
    settings = load_configuration(flags, environment={}, file=tmp_path / "none").settings
    assert bind_address(settings) == (address or f"unix:{tmp_path}/run/daemon.sock")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("0.0.0.0:50070", "needs TLS and tokens"),
        ("192.168.1.5:50070", "needs TLS and tokens"),
        ("example.org:50070", "needs TLS and tokens"),
        ("[::]:50070", "needs TLS and tokens"),
        ("50070", "host:port"),
        ("127.0.0.1:http", "host:port"),
        ("127.0.0.1:99999", "host:port"),
        ("127.0.0.1:0", "host:port"),
        ("unix:/" + "x" * 120, "bytes long"),
    ],
)
def test_other_addresses_are_refused(tmp_path: Path, address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_configuration({"address": address}, environment={"OPTIQ_HOME": "/tmp/o"}, file=tmp_path / "none")


def test_a_home_that_is_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter folder"):
        load_configuration({"home": "/" + "x" * 120}, environment={}, file=tmp_path / "none")
