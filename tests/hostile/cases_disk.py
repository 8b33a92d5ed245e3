"""Links, special files and odd names where a bank has regular files."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from case import add, case, each
from forge import Forge

MANIFEST = "versions/00000001.json"


def _data_file(bank: Path, suffix: str = "index") -> Path:
    return sorted((bank / "data").glob(f"*.{suffix}"))[0]


def _moved_out(path: Path) -> Path:
    """Moves a file or directory out of the bank and says where it is."""
    outside = path.parents[2 if path.parent.name in ("data", "versions") else 1] / "outside" / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    return outside


def _link_out(path: Path) -> None:
    path.symlink_to(_moved_out(path))


def _replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has a hundred bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    """/dev/zero, which has no end; only the superuser makes devices, so others get a FIFO."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except (PermissionError, OSError):
        os.mkfifo(path)


add(
    "the manifest is a link out of the bank",
    on_disk=lambda bank: _link_out(bank / MANIFEST),
    step="manifest",
    words="link",
)
add(
    "versions is a link out of the bank",
    on_disk=lambda bank: _link_out(bank / "versions"),
    error="UsageError",
    step="versions",
    words="no bank",
)
add(
    "data is a link out of the bank", on_disk=lambda bank: _link_out(bank / "data"), step="open", words="link"
)
add(
    "a data file is a link to the same bytes",
    on_disk=lambda bank: _link_out(_data_file(bank)),
    step="open",
    words="link",
)
add(
    "a data file is a link to itself",
    on_disk=lambda bank: _replaced(_data_file(bank), lambda path: path.symlink_to(path.name)),
    step="open",
    words="link",
)
add(
    "a data file is a link to the memory of the process",
    on_disk=lambda bank: _replaced(_data_file(bank), lambda path: path.symlink_to("/proc/self/mem")),
    step="open",
    words="link",
)
add(
    "a data file is a hard link",
    on_disk=lambda bank: os.link(_data_file(bank), bank.parent / "same file"),
    error="",
    same=True,
)
SPECIAL: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "directory": Path.mkdir,
    "socket": _socket,
    "device": _device,
}
for _kind, _make in SPECIAL.items():
    add(
        f"a data file is a {_kind}",
        on_disk=lambda bank, make=_make: _replaced(_data_file(bank), make),  # type: ignore[misc]
        step="open",
        words="not a regular file|special",
    )
    add(
        f"the manifest is a {_kind}",
        on_disk=lambda bank, make=_make: _replaced(bank / MANIFEST, make),  # type: ignore[misc]
        step="manifest",
        words="not a regular file|special",
    )
add(
    "a newer version is a directory",
    on_disk=lambda bank: (bank / "versions/00000002.json").mkdir(),
    step="manifest",
    words="not a regular file",
)
add(
    "a newer version is a dangling link",
    on_disk=lambda bank: (bank / "versions/99999999.json").symlink_to("nowhere"),
    step="manifest",
    words="link",
)
add(
    "a newer version is a copy of the old",
    on_disk=lambda bank: (bank / "versions/00000002.json").write_bytes((bank / MANIFEST).read_bytes()),
    step="manifest",
    words="says that it is version 1",
)
add(
    "the manifest has an absurd size",
    on_disk=lambda bank: os.truncate(bank / MANIFEST, 1 << 40),
    step="manifest",
    words="more than",
)
add(
    "a data file is longer than its entry says",
    on_disk=lambda bank: os.truncate(_data_file(bank), 1 << 40),
    step="open",
    words="bytes, expected",
)
add(
    "a data file is empty",
    on_disk=lambda bank: os.truncate(_data_file(bank), 0),
    step="open",
    words="has 0 bytes",
)
add("a data file is missing", on_disk=lambda bank: _data_file(bank).unlink(), step="open", words="missing")

ODD_NAMES = [
    "00000000.json",
    "0000002.json",
    "000000002.json",
    "00000002.JSON",
    "00000002.json ",
    "00000002.json\n",
    "٠٠٠٠٠٠٠٢.json",
    "０００００００２.json",
    "-0000002.json",
    "+0000002.json",
    ".tmp-00000002.json",
    "00000002.json.bak",
]


@case(error="", same=True, on_disk=lambda bank: [(bank / "versions" / name).touch() for name in ODD_NAMES])
def names_that_look_like_versions(forge: Forge) -> None:
    """Nothing is changed but the directory."""


@case(
    error="",
    same=True,
    commands=True,
    on_disk=lambda bank: (bank / "data" / os.fsdecode(b"\xff\x1b[2J")).touch(),
)
def a_name_that_is_not_UTF8(forge: Forge) -> None:
    """Nothing is changed but the directory."""


ZEROS = "0" * 64


@each(
    {
        "up and out": "../../../etc/passwd",
        "absolute": "/etc/passwd",
        "up from inside": "a/../../b",
        "parent": "..",
        "this directory": ".",
        "nothing": "",
        "NUL": "\0",
        "very long": "x" * 5000,
        "NUL at the end": f"{ZEROS}.chunks.arrow\0",
        "line feed at the end": f"{ZEROS}.chunks.arrow\n",
        "path within the name": f"{ZEROS}/../x.chunks.arrow",
        "backslashes": f"..\\..\\{ZEROS}.chunks.arrow",
        "other case": f"{ZEROS}.CHUNKS.ARROW",
        "space before": f" {ZEROS}.chunks.arrow",
        "fullwidth digits": f"{'０' * 64}.chunks.arrow",
        "Cyrillic letter": f"{ZEROS}.сhunks.arrow",
        "one dot leader": f"{ZEROS}․chunks.arrow",
        "percent-encoded": f"%2e%2e%2f{ZEROS}.chunks.arrow",
        "another kind": f"{ZEROS}.index",
        "of another hash": f"{'1' * 64}.chunks.arrow",
        "of a device": "/dev/zero",
        "of a descriptor": "/proc/self/fd/0",
        "terminal escapes": "\x1b]0;owned\x07",
    },
    step="manifest",
    words="name",
)
def a_data_file_has_a_name(forge: Forge, name: str) -> None:
    """A name is a hash and a suffix; no other leads anywhere."""
    forge.shard()["chunks"]["name"] = name


@each(
    {
        "upper case": "A" * 64,
        "too short": "0" * 63,
        "line feed": f"{ZEROS}\n",
        "Arabic digits": "٠" * 64,
        "path": f"../{'0' * 61}",
    },
    step="manifest",
    words="sha256",
)
def a_data_file_has_a_hash(forge: Forge, sha256: str) -> None:
    """The name fits the hash, but the hash is none."""
    forge.shard()["chunks"].update(sha256=sha256, name=f"{sha256}.chunks.arrow")


@each({"chunks": "chunks", "memories": "memories"}, error="", verified=False, same=True)
def a_table_whose_name_is_not_its_hash(forge: Forge, kind: str) -> None:
    """Its record batches have the digests of the manifest, so they are read; ``verify`` hashes all."""
    entry = forge.shard()[kind]
    data = forge.data(entry)
    entry.update(sha256=ZEROS, name=f"{ZEROS}.{entry['name'].split('.', 1)[1]}")
    forge.files[entry["name"]] = data


@case(step="index bytes", words="SHA-256")
def an_index_whose_name_is_not_its_hash(forge: Forge) -> None:
    """FAISS sees nothing whose hash is wrong."""
    entry = forge.shard()["index"]
    data = forge.data(entry)
    entry.update(sha256=ZEROS, name=f"{ZEROS}.index")
    forge.files[entry["name"]] = data
