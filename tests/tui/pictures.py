"""Takes the README's pictures of every screen from the real widgets: ``python -m tests.tui.pictures [FOLDER]``.

Each screen is drawn at 80x24 and at 200x60 against the fake daemon's scene, with its frozen clock.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from optiq_tui.screens import BOARDS
from tests.tui.conftest import ADDRESS, make_app
from tests.tui.fake_daemon import FakeDaemonThread
from tests.tui.scene import SIZES, fill_all
from tests.tui.steps import STEPS, connecting, settled

CONNECTING = "connecting"
DEFAULT = Path(__file__).resolve().parents[2] / "tui" / "images"


async def take(name: str, size: tuple[int, int]) -> str:
    """One screen as SVG."""
    app = make_app()
    async with app.run_test(size=size) as pilot:
        if name == CONNECTING:
            await connecting(pilot)
        else:
            await settled(pilot)
            await STEPS[name](pilot)
        return app.export_screenshot(title=f"optiq tui · {name}")


async def take_all(folder: Path, names: list[str]) -> None:
    """All of these screens, in one event loop: gRPC's asyncio side does not outlive its first."""
    for name in names:
        for width, height in SIZES:
            with tempfile.TemporaryDirectory() as scratch:
                os.chdir(scratch)
                os.mkdir("run")  # noqa: PTH102 - the folder is that of the process
                with FakeDaemonThread(ADDRESS) as thread:
                    thread.do(lambda: fill_all(thread.daemon))
                    thread.daemon.silent = name == CONNECTING
                    picture = await take(name, (width, height))
                os.chdir(folder)
            file = folder / f"{name}-{width}x{height}.svg"
            file.write_text("\n".join(line.rstrip() for line in picture.splitlines()) + "\n")
            print(file)


def main() -> None:
    """Write ``SCREEN-WIDTHxHEIGHT.svg`` into the folder."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DEFAULT
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(folder, sys.argv[2:] or [*BOARDS, CONNECTING]))


if __name__ == "__main__":
    main()
