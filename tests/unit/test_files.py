"""Folders that appear whole: killed at every step of a replacement, and what is found afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optiq_core.files import recover_folders, staged_folder

WRITER = """
import os, sys
from pathlib import Path
from optiq_core import files
calls = 0
def die(name, real):
    def stepped(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return stepped
files.os.fsync = die("fsync", os.fsync)
Path.rename = die("rename", Path.rename)
files.shutil.rmtree = die("rmtree", files.shutil.rmtree)
with files.staged_folder(Path(sys.argv[1]), overwrite=True) as staging:
    (staging / "a").write_text("new")
    (staging / "b").write_text("new")
print("done")
"""


def whole(folder: Path) -> str:
    texts = {file.read_text() for file in folder.iterdir()}
    assert len(texts) == 1 and len(list(folder.iterdir())) == 2, "a mixture"
    return texts.pop()


def test_killed_at_any_step_the_old_or_the_new_content_is_there(tmp_path: Path) -> None:
    seen = set()
    for step in range(1, 30):
        target = tmp_path / f"run-{step}" / "adapter"
        with staged_folder(target) as staging:
            for name in "ab":
                (staging / name).write_text("old")
        command = [sys.executable, "-c", WRITER, str(target), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        missing = not target.exists()
        recovered = recover_folders(target.parent)
        assert bool(recovered) == missing
        seen.add((whole(target), missing))
        assert [entry.name for entry in target.parent.iterdir()] == ["adapter"], "nothing is left beside it"
        if done.stdout:
            assert done.returncode == 0 and whole(target) == "new"
            break
    assert seen == {("old", False), ("old", True), ("new", False)}, "every outcome was met"


def test_what_a_running_process_works_on_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / f".adapter.staging-{os.getpid()}"
    parent = tmp_path / f".adapter.replaced-{os.getppid()}"
    for folder in (mine, parent):
        folder.mkdir()
    assert recover_folders(tmp_path) == [] and mine.is_dir() and parent.is_dir()


def test_an_existing_folder_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(FileExistsError), staged_folder(tmp_path / "adapter"):
        pass
