"""The dashboard as a whole: ways between screens, help, keys, settings, themes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from optiq_tui.cli import tui
from optiq_tui.keys import all_keys
from optiq_tui.screens import BOARDS
from optiq_tui.screens.adapters import Adapters
from optiq_tui.screens.events import Events
from optiq_tui.screens.help import Help
from optiq_tui.screens.overview import Overview
from optiq_tui.settings import Settings, SettingsError, read_settings
from tests.tui.conftest import ADDRESS, make_app, until
from tests.tui.fake_daemon import FakeDaemon
from tests.tui.reading import ROMAN
from tests.tui.steps import go, settled

FLOW_CONTROL_AND_PREFIXES = {"ctrl+b", "ctrl+a", "ctrl+s", "ctrl+q", "ctrl+z"}


async def test_screens_by_key_by_click_and_by_palette(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for number, board in enumerate(BOARDS.values(), start=1):
            await pilot.press(str(number))
            assert type(app.screen) is board
        await pilot.click("#tabs", offset=(15, 0))
        assert isinstance(app.screen, Adapters)
        await pilot.press("ctrl+p", *"go to events")
        await pilot.pause(0.5)
        await pilot.press("down", "enter")
        await until(lambda: isinstance(app.screen, Events))


async def test_the_palette_offers_what_can_be_done_here(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        here = {command.title for command in app.get_system_commands(app.screen)}
        assert "Pin" not in here
        await pilot.press("2")
        there = {command.title for command in app.get_system_commands(app.screen)}
        assert {"Pin", "Load", "Roll back", "Theme"} <= there


async def test_help_is_about_what_has_the_focus(daemon: FakeDaemon) -> None:
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await go(pilot, "2")
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        assert "A table." in app.screen._what
        assert "adapters.pin" in {binding.id for _, _, binding in app.screen._rows}
        await pilot.press("escape")
        assert isinstance(app.screen, Adapters)


async def test_keys_are_remapped_by_id(daemon: FakeDaemon) -> None:
    app = make_app(settings=Settings(keys={"screen.events": "f6", "adapters.pin": "g"}))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("6")
        assert isinstance(app.screen, Overview)
        await pilot.press("f6")
        assert isinstance(app.screen, Events)
        await go(pilot, "2")
        await pilot.press("down", "down", "g")
        await until(lambda: not daemon.adapters[ROMAN].pinned)


async def test_themes_and_density(daemon: FakeDaemon) -> None:
    app = make_app(settings=Settings(theme="optiq-light", compact=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert not app.current_theme.dark
        assert app.screen.query_one("#residents").styles.border_left[0] in {"", "none"}
        await pilot.press("c")
        assert app.screen.query_one("#residents").styles.border_left[0] == "round"


def test_every_key_has_an_id_and_none_clashes() -> None:
    keys = all_keys()
    used = {key.strip() for entry in keys for key in entry.keys.split(",")}
    assert not used & FLOW_CONTROL_AND_PREFIXES
    assert all(entry.what for entry in keys)
    ids = [entry.id for entry in keys]
    assert len(ids) == len(set(ids))


def test_the_settings_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "tui.toml"
    ids = {key.id for key in all_keys()}
    assert read_settings(file, ids) == Settings()
    file.write_text('theme = "optiq-light"\n[keys]\n"screen.jobs" = "f4,4"\n')
    assert read_settings(file, ids).keys == {"screen.jobs": "f4,4"}
    for content, said in (
        ('[keys]\n"screen.job" = "f4"\n', "did you mean 'screen.jobs'"),
        ('[keys]\n"screen.jobs" = ","\n', "empty key"),
        ("colour = 1\n", "colour"),
        ("compact = 3\n", "compact"),
        ("not toml", str(file)),
    ):
        file.write_text(content)
        with pytest.raises(SettingsError, match=r".*") as raised:
            read_settings(file, ids)
        assert said in str(raised.value)


def test_the_command_lists_its_keys() -> None:
    result = CliRunner().invoke(tui, ["--keys", "--json"])
    assert result.exit_code == 0
    assert {"id": "screen.jobs", "keys": "4", "what": "Go to jobs", "where": "OptiqApp"} in json.loads(result.stdout)
    assert "jobs.cancel" in CliRunner().invoke(tui, ["--keys"]).stdout
    refused = CliRunner().invoke(tui, ["--theme", "no-such-theme", "--address", ADDRESS])
    assert refused.exit_code == 1
    assert "no-such-theme" in refused.stderr
