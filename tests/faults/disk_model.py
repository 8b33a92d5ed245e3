"""A file system in memory that knows what was forced to disk, and what a power loss may leave of the rest.

The rules are those of POSIX and no kinder: the bytes of a file are safe after an fsync of the file, an entry
of a directory (creation, link, rename, removal) after an fsync of the directory, and nothing else is. So
ext4's habit of writing a new file's entry together with its bytes is not counted on, nor is any order among
calls that no fsync separates. Before its fsync a file may come back as it was at the last one, as it is now,
cut off, or with a tail of zeros or garbage.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Final

ROOT: Final = 0
Tree = dict[str, bytes | None]
"""A directory laid out: path → bytes of a file, None for a directory."""

Change = tuple[tuple[str, int | None], ...]
"""What one call does to a directory, whole or not at all: names and the node each then stands for."""


@dataclass(frozen=True)
class File:
    """``synced`` is what the last fsync made safe (nothing for a new file), ``current`` what readers see."""

    synced: bytes = b""
    current: bytes = b""


@dataclass(frozen=True)
class Directory:
    """``synced`` entries are safe; each of the ``pending`` changes may or may not be on disk."""

    synced: Mapping[str, int]
    pending: tuple[Change, ...] = ()

    def names(self, kept: tuple[bool, ...] | None = None) -> dict[str, int]:
        """Entries when the pending changes of which ``kept`` is true (None: all) were carried out."""
        found = dict(self.synced)
        for number, change in enumerate(self.pending):
            if kept is None or kept[number]:
                for name, node in change:
                    if node is None:
                        found.pop(name, None)
                    else:
                        found[name] = node
        return found


State = Mapping[int, File | Directory]


class Disk:
    """The file system as calls change it. Nodes are numbered; the root is a directory that is safe."""

    def __init__(self, place: Path) -> None:
        """Starts with all that stands below ``place``, all of it safe."""
        self.nodes: dict[int, File | Directory] = {}
        self._add_directory(place)

    def _add_directory(self, place: Path) -> int:
        number = len(self.nodes)
        self.nodes[number] = Directory({})
        entries = {}
        for item in sorted(place.iterdir()):
            entries[item.name] = self._add_directory(item) if item.is_dir() else self._add_file(item)
        self.nodes[number] = Directory(entries)
        return number

    def _add_file(self, item: Path) -> int:
        data = item.read_bytes()
        self.nodes[len(self.nodes)] = File(data, data)
        return len(self.nodes) - 1

    def state(self) -> State:
        """What the disk is now; later calls do not change it."""
        return dict(self.nodes)

    def node(self, path: str) -> int:
        """The number of the node at ``path`` below the root; raises KeyError."""
        number = ROOT
        for name in Path(path).parts:
            number = self._directory(number).names()[name]
        return number

    def create(self, path: str, node: File | Directory) -> int:
        number = len(self.nodes)
        self.nodes[number] = node
        self._change(path, number)
        return number

    def write(self, number: int, data: bytes, offset: int | None = None) -> None:
        """Writes at ``offset``, or at the end."""
        file = self._file(number)
        start = len(file.current) if offset is None else offset
        before = file.current[:start].ljust(start, b"\0")
        self.nodes[number] = replace(file, current=before + data + file.current[start + len(data) :])

    def truncate(self, number: int, size: int) -> None:
        file = self._file(number)
        self.nodes[number] = replace(file, current=file.current[:size].ljust(size, b"\0"))

    def sync(self, number: int) -> None:
        node = self.nodes[number]
        if isinstance(node, File):
            self.nodes[number] = File(node.current, node.current)
        else:
            self.nodes[number] = Directory(node.names())

    def link(self, source: str, target: str) -> None:
        self._change(target, self.node(source))

    def remove(self, path: str) -> None:
        self._change(path, None)

    def rename(self, source: str, target: str) -> None:
        """Within one directory a rename is one change; across directories its halves are independent."""
        node, (one, two) = self.node(source), (Path(source), Path(target))
        if one.parent == two.parent:
            self._append(str(one.parent), ((two.name, node), (one.name, None)))
        else:
            self._change(target, node)
            self._change(source, None)

    def _change(self, path: str, number: int | None) -> None:
        self._append(str(Path(path).parent), ((Path(path).name, number),))

    def _append(self, path: str, change: Change) -> None:
        number = self.node(path)
        directory = self._directory(number)
        self.nodes[number] = replace(directory, pending=(*directory.pending, change))

    def _directory(self, number: int) -> Directory:
        node = self.nodes[number]
        assert isinstance(node, Directory)
        return node

    def _file(self, number: int) -> File:
        node = self.nodes[number]
        assert isinstance(node, File)
        return node


def tree_now(state: State) -> Tree:
    """What processes see, and what is left when one of them dies."""
    data = {number: node.current for number, node in state.items() if isinstance(node, File)}
    return _tree(state, {}, data)


def after_power_loss(state: State, most: int, random: Random) -> Iterator[Tree]:
    """Different trees that a power loss may leave: all of them where choices are few, else the extremes and a
    sample, ``most`` in all."""
    changes = [(n, len(node.pending)) for n, node in state.items() if isinstance(node, Directory)]
    files = {n: node for n, node in state.items() if isinstance(node, File)}
    remains = {n: _remains(file, random) for n, file in files.items()}
    bits = sum(count for _, count in changes)
    if bits < 24 and 2**bits * math.prod(map(len, remains.values())) <= most:
        choices = _all(bits, remains)
    else:
        choices = _some(bits, remains, most, random)
    seen: set[int] = set()
    for kept, data in choices:
        place, by_directory = 0, {}
        for number, count in changes:
            by_directory[number] = kept[place : place + count]
            place += count
        tree = _tree(state, by_directory, data)
        key = tree_key(tree)
        if key not in seen:
            seen.add(key)
            yield tree


def tree_key(tree: Tree) -> int:
    """Equal for equal trees."""
    return hash(frozenset(tree.items()))


def tree_at(place: Path) -> Tree:
    """The tree of a real directory."""
    found: Tree = {}
    for item in place.rglob("*"):
        found[str(item.relative_to(place))] = None if item.is_dir() else item.read_bytes()
    return found


def lay_out(tree: Tree, place: Path) -> None:
    """Makes a tree a real directory ``place``, which must not be there."""
    place.mkdir()
    for path, data in sorted(tree.items()):
        if data is None:
            os.mkdir(place / path)
        else:
            (place / path).write_bytes(data)


_Choice = tuple[tuple[bool, ...], Mapping[int, bytes]]


def _all(bits: int, remains: Mapping[int, list[bytes]]) -> Iterator[_Choice]:
    for kept in product((True, False), repeat=bits):
        for data in product(*remains.values()):
            yield kept, dict(zip(remains, data, strict=True))


def _some(bits: int, remains: Mapping[int, list[bytes]], most: int, random: Random) -> Iterator[_Choice]:
    deepest = max(map(len, remains.values()), default=1)
    extremes = list(product(range(deepest), (False, True)))[:most]
    for number, keep in extremes:
        yield (keep,) * bits, {n: data[number % len(data)] for n, data in remains.items()}
    for _ in range(most - len(extremes)):
        # Not always half of the changes: most faults show when almost all or almost none are there.
        share = random.choice((0.05, 0.3, 0.5, 0.7, 0.95))
        kept = tuple(random.random() < share for _ in range(bits))
        yield kept, {n: random.choice(data) for n, data in remains.items()}


def _remains(file: File, random: Random) -> list[bytes]:
    """What may be left of a file, the harshest first: the dropped bytes, then torn ones, then all."""
    if file.synced == file.current:
        return [file.current]
    cut, size = random.randrange(max(1, len(file.current))), len(file.current)
    whole = file.current
    return list(
        dict.fromkeys(
            (
                file.synced,
                whole[:cut] + random.randbytes(size - cut),
                whole[:cut],
                whole[:cut] + bytes(size - cut),
                b"",
                whole,
            )
        )
    )


def _tree(state: State, kept: Mapping[int, tuple[bool, ...]], data: Mapping[int, bytes]) -> Tree:
    found: Tree = {}

    def walk(number: int, prefix: str) -> None:
        directory = state[number]
        assert isinstance(directory, Directory)
        for name, child in directory.names(kept.get(number)).items():
            if isinstance(state[child], File):
                found[prefix + name] = data[child]
            else:
                found[prefix + name] = None
                walk(child, f"{prefix}{name}/")

    walk(ROOT, "")
    return found
