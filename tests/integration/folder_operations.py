"""What people and programs do to adapter folders, as real file operations. README's table and the tests read this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.adapters import write_tiny_adapter


@dataclass(frozen=True)
class Place:
    """Where an operation happens.

    Attributes:
        drop: the tenant's drop folder.
        elsewhere: a folder on the same file system that nobody watches.
        name: the adapter's name.
        seed: of the content that it has before, if it has any; `seed + 1` makes the next version.
    """

    drop: Path
    elsewhere: Path
    name: str
    seed: int

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return self.drop / self.name

    def source(self, seed: int) -> Path:
        """Adapter files outside of the drop folder."""
        folder = self.elsewhere / f"{self.name}-{seed}"
        return folder if folder.exists() else write_tiny_adapter(folder, seed=seed)

    @property
    def old(self) -> Path:
        """The content before."""
        return self.source(self.seed)

    @property
    def new(self) -> Path:
        """The next content."""
        return self.source(self.seed + 1)


# What is true in the end: the version that is served, by its content.
SERVED_NEW = "new"
SERVED_OLD = "old"
RETIRED = "retired"
QUARANTINED = "quarantined"
MOVED = "moved"


@dataclass(frozen=True)
class Operation:
    """One row.

    Attributes:
        command: what is done, as the table says it.
        effect: what becomes of it, as the table says it.
        run: the file operations.
        installed: the old content is served before.
        result: what is true in the end.
        code: why it is quarantined, if it is.
    """

    command: str
    effect: str
    run: Callable[[Place], None]
    installed: bool
    result: str
    code: str = ""


def copy(place: Place) -> None:
    subprocess.run(["cp", "-r", str(place.new), str(place.folder)], check=True)


def copy_over(place: Place) -> None:
    subprocess.run(["cp", "-r", f"{place.new}/.", str(place.folder)], check=True)


def rsync(place: Place) -> None:
    # As rsync does it: every file under a temporary name with a dot, then renamed over the old one.
    place.folder.mkdir(exist_ok=True)
    for file in sorted(place.new.iterdir()):
        temporary = place.folder / f".{file.name}.Xq3F9d"
        with file.open("rb") as reading, temporary.open("wb") as writing:
            while part := reading.read(4096):
                writing.write(part)
                writing.flush()
                time.sleep(0.005)
        shutil.copystat(file, temporary)
        temporary.rename(place.folder / file.name)


def move_in(place: Place) -> None:
    place.new.rename(place.folder)


def move_out(place: Place) -> None:
    place.folder.rename(place.elsewhere / f"{place.name}-out")


def rename(place: Place) -> None:
    place.folder.rename(place.drop / f"{place.name}-renamed")


def swap(place: Place) -> None:
    place.folder.rename(place.elsewhere / f"{place.name}-before")
    place.new.rename(place.folder)


def unpack(place: Place) -> None:
    archive = place.elsewhere / f"{place.name}.tar"
    with tarfile.open(archive, "w") as writing:
        for file in sorted(place.new.iterdir()):
            writing.add(file, f"{place.name}/{file.name}")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(place.drop)], check=True)


def edit(place: Place) -> None:
    # As vim does it: a swap file, a backup, a new file under the old name.
    config = place.folder / "adapter_config.json"
    content = json.loads(config.read_text())
    content["lora_parameters"]["scale"] /= 2
    (place.folder / ".adapter_config.json.swp").write_bytes(b"b0VIM 9.0")
    config.rename(place.folder / "adapter_config.json~")
    config.write_text(json.dumps(content))
    (place.folder / "adapter_config.json~").unlink()
    (place.folder / ".adapter_config.json.swp").unlink()


def leave_files(place: Place) -> None:
    (place.folder / ".adapter_config.json.swp").write_bytes(b"b0VIM 9.0")
    (place.folder / "notes.txt").write_text("trained on a Tuesday")
    (place.folder / "checkpoints").mkdir()
    (place.folder / "checkpoints" / "0001.bin").write_bytes(b"x")


def grow(place: Place) -> None:
    place.folder.mkdir()
    shutil.copy(place.new / "adapter_config.json", place.folder)
    content = (place.new / "adapters.safetensors").read_bytes()
    with (place.folder / "adapters.safetensors").open("wb") as writing:
        for part in range(10):
            writing.write(content[part * len(content) // 10 : (part + 1) * len(content) // 10])
            writing.flush()
            # Longer than the settle time: only the open file says that there is more to come.
            time.sleep(0.15)


def touch(place: Place) -> None:
    for file in place.folder.iterdir():
        os.utime(file)


def rewrite_same(place: Place) -> None:
    for file in place.old.iterdir():
        shutil.copyfile(file, place.folder / file.name)


def overwrite_bad(place: Place) -> None:
    write_tiny_adapter(place.folder, seed=place.seed, hidden=96)


def break_and_mend(place: Place) -> None:
    (place.folder / "adapter_config.json").write_text("{ not json")
    time.sleep(0.5)
    for file in place.new.iterdir():
        shutil.copyfile(file, place.folder / file.name)


def truncate(place: Place) -> None:
    weights = place.folder / "adapters.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def delete(place: Place) -> None:
    shutil.rmtree(place.folder)


def delete_file(place: Place) -> None:
    (place.folder / "adapters.safetensors").unlink()


def delete_and_copy(place: Place) -> None:
    shutil.rmtree(place.folder)
    copy(place)


def link_folder(place: Place) -> None:
    place.folder.symlink_to(place.new, target_is_directory=True)


def link_file(place: Place) -> None:
    place.folder.mkdir()
    for file in place.new.iterdir():
        (place.folder / file.name).symlink_to(file)


def hard_link(place: Place) -> None:
    subprocess.run(["cp", "-rl", str(place.new), str(place.folder)], check=True)


def empty_folder(place: Place) -> None:
    place.folder.mkdir()


OPERATIONS = [
    Operation("`cp -r` a folder in", "served", copy, False, SERVED_NEW),
    Operation("`cp -r` over a folder", "a new version is served", copy_over, True, SERVED_NEW),
    Operation("`rsync` a folder in (temporary names, renames)", "served", rsync, False, SERVED_NEW),
    Operation("`rsync` over a folder", "a new version is served", rsync, True, SERVED_NEW),
    Operation("`mv` a folder in", "served", move_in, False, SERVED_NEW),
    Operation("`mv` a folder out", "the name is retired, with its versions", move_out, True, RETIRED),
    Operation("`mv` to another name", "the new name serves the version, the old one is retired", rename, True, MOVED),
    Operation("`mv` the folder out and another in", "a new version is served", swap, True, SERVED_NEW),
    Operation("unpack an archive in place", "served", unpack, False, SERVED_NEW),
    Operation("unpack an archive over a folder", "a new version is served", unpack, True, SERVED_NEW),
    Operation("edit a file with an editor (swap and backup files)", "a new version is served", edit, True, SERVED_NEW),
    Operation("leave other files beside the adapter's", "nothing: they are not read", leave_files, True, SERVED_OLD),
    Operation("write a file slowly", "served when the file is closed and still", grow, False, SERVED_NEW),
    Operation("`touch`", "nothing: the content is the same", touch, True, SERVED_OLD),
    Operation("write the same content again", "nothing: the content is the same", rewrite_same, True, SERVED_OLD),
    Operation(
        "overwrite with an adapter of another base",
        "quarantined; the old version is served on",
        overwrite_bad,
        True,
        QUARANTINED,
        "SHAPE_MISMATCH",
    ),
    Operation("break a file, then mend it", "the mended content is served", break_and_mend, True, SERVED_NEW),
    Operation(
        "cut a file short",
        "quarantined; the old version is served on",
        truncate,
        True,
        QUARANTINED,
        "BAD_SAFETENSORS",
    ),
    Operation("`rm -r` the folder", "the name is retired, with its versions", delete, True, RETIRED),
    Operation(
        "`rm` one of its files",
        "quarantined; the old version is served on",
        delete_file,
        True,
        QUARANTINED,
        "FILE_MISSING",
    ),
    Operation("`rm -r`, then `cp -r` at once", "a new version is served", delete_and_copy, True, SERVED_NEW),
    Operation("link a folder (`ln -s`)", "quarantined", link_folder, False, QUARANTINED, "LINK"),
    Operation("a folder of linked files", "quarantined", link_file, False, QUARANTINED, "LINK"),
    Operation("a folder of hard links (`cp -l`)", "quarantined", hard_link, False, QUARANTINED, "LINK"),
    Operation(
        "make an empty folder", "quarantined until it is filled", empty_folder, False, QUARANTINED, "FILE_MISSING"
    ),
]


def markdown() -> str:
    """The table as README shows it."""
    rows = [f"| {operation.command} | {operation.effect} |" for operation in OPERATIONS]
    return "\n".join(["| operation on the drop folder | effect |", "|---|---|", *rows])


if __name__ == "__main__":
    print(markdown())
