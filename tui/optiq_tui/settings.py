"""``tui.toml``: keys, theme and density of the dashboard."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from optiq_client.paths import config_path


class SettingsError(ValueError):
    """The file cannot be used; the message names file, field, what was found and what would be right."""


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The content of the file, all of it optional.

    Attributes:
        theme: ``optiq``, ``optiq-light``, or a theme of Textual.
        compact: no frames, more rows.
        keys: the id of a binding to its keys, comma-separated, for example ``{"screen.routing": "f3,3"}``.
    """

    theme: str = "optiq"
    compact: bool = False
    keys: dict[str, str] = {}


def settings_path() -> Path:
    """``$OPTIQ_TUI_CONFIG``, else ``tui.toml`` beside the daemon's ``config.toml``."""
    chosen = os.environ.get("OPTIQ_TUI_CONFIG", "")
    return Path(chosen).expanduser() if chosen else config_path().parent / "tui.toml"


def read_settings(file: Path, key_ids: Collection[str]) -> Settings:
    """Read the file; the defaults if there is none.

    Args:
        file: a TOML file.
        key_ids: ids that bindings have.

    Raises:
        SettingsError: it cannot be read, or says something that is not known.
    """
    try:
        settings = msgspec.toml.decode(file.read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsError(f"{file}: {error}") from None
    for key_id, keys in settings.keys.items():
        if key_id not in key_ids:
            near = difflib.get_close_matches(key_id, key_ids, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "optiq tui --keys lists them all"
            raise SettingsError(f"{file}: keys: no binding has the id {key_id!r}; {hint}")
        if not all(key.strip() for key in keys.split(",")):
            raise SettingsError(f"{file}: keys: {key_id!r} has an empty key in {keys!r}; expected, for example, 'f3,3'")
    return settings
