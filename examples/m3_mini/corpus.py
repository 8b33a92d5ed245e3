"""``python -m examples.m3_mini.corpus DIR``: text from Debian documentation packages and from CPython.

Needs a Debian-like system (apt-get, dpkg, groff, pod2text) but no root, and installs nothing. Writes into DIR

- ``train.jsonl`` and ``held-out.jsonl``: one document a line, with ``id``, ``text`` and ``family``;
- ``sources.md``: packages, versions and licences of each family, and how much of it there is.

What is held out is read first, so that a paragraph or document that occurs there is left out of the training
text wherever it comes again, and not the other way round.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from examples.m3_mini.packages import HELD_OUT, TRAINING, Package
from m3build.chunking.near_duplicates import NearDuplicates
from m3build.corpus.documents import read_documents

MOST_CHARACTERS = 6_000_000  # of a family
LEAST_CHARACTERS = 400  # of a document
REPEATED_CHARACTERS = 60  # a paragraph as long as this stands once in the corpus
SIMILAR = 0.8
FRAME_SHARE = 0.05
CPYTHON = "cpython"
RENDERERS = {
    ".pod": "pod2text -u -w 1000 {0}",
    ".gz": "zcat {0} | groff -Kutf8 -Tutf8 -P-cbou -mandoc -rLL=900n",
}


@dataclass
class Unrepeated:
    """Takes away what the corpus has already: paragraphs as they stand, documents that are nearly alike."""

    near: NearDuplicates
    _seen: set[bytes] = field(default_factory=set)

    def rest(self, name: str, text: str) -> str | None:
        """The text without the paragraphs that came before; None if too little of it is left."""
        paragraphs = text.split("\n\n")
        kept = [paragraph for paragraph in paragraphs if not self._is_repeated(paragraph)]
        rest = "\n\n".join(kept).strip()
        if len(rest) < LEAST_CHARACTERS or self.near.is_duplicate(name.encode(), rest):
            return None
        return rest

    def _is_repeated(self, paragraph: str) -> bool:
        words = " ".join(paragraph.split())
        if len(words) < REPEATED_CHARACTERS:
            return False
        digest = hashlib.blake2b(words.encode(), digest_size=12).digest()
        repeated = digest in self._seen
        self._seen.add(digest)
        return repeated


def fetch(packages: Sequence[Package], directory: Path) -> dict[str, Path]:
    """Download and unpack packages; the root of each. What is there already is kept."""
    names = list(dict.fromkeys(package.name for package in packages))
    directory.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in names if not list(directory.glob(f"{name}_*.deb"))]:
        subprocess.run(["apt-get", "download", *missing], cwd=directory, check=True)
    for name in names:
        if not (directory / name).is_dir():
            (archive,) = directory.glob(f"{name}_*.deb")
            subprocess.run(["dpkg", "-x", archive, directory / name], check=True)
    return {name: directory / name for name in names}


def read(package: Package, root: Path) -> Iterator[tuple[str, str]]:
    """Ids and texts of a package."""
    with tempfile.TemporaryDirectory() as rendered:
        sources = [str(root / pattern) for pattern in package.globs]
        if not sources[0].endswith(".html"):
            render([path for pattern in package.globs for path in sorted(root.glob(pattern))], Path(rendered))
            sources = [rendered]
        for document in read_documents(sources, lambda reject: None):
            yield f"{package.name}/{document.id}", document.text


def render(pages: Iterable[Path], out: Path) -> None:
    """Man pages and POD as text files, a line a paragraph."""

    def one(page: Path) -> None:
        command = RENDERERS[page.suffix].format('"$0"')
        shown = subprocess.run(["sh", "-c", command, page], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        text = plain(shown.stdout.decode("utf-8", "replace"))
        (out / f"{page.parent.name}.{page.name}.txt").write_text(text, encoding="utf-8")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, pages))


def plain(text: str) -> str:
    """A rendered page without what only fills lines as wide as ours: rules, and the space within headers."""
    return re.sub(r"(?<=\S) {8,}", "  ", re.sub(r"[_─]{8,}", "", text))


def unframed(documents: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Documents of a family without the paragraphs at their ends that many share: navigation, notices."""
    common = Counter(part for _, text in documents for part in set(text.split("\n\n")))
    most = 1 + FRAME_SHARE * len(documents)
    for name, text in documents:
        parts = text.split("\n\n")
        inner = [at for at, part in enumerate(parts) if common[part] <= most]
        if inner:
            yield name, "\n\n".join(parts[inner[0] : inner[-1] + 1])


def docstrings(library: Path) -> Iterator[tuple[str, str]]:
    """Ids and texts of CPython's modules: all docstrings of a module, each after the name it belongs to."""
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).with_suffix("").as_posix()
        if {"test", "tests", "site-packages", "dist-packages", "idlelib"} & set(name.split("/")):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # lib2to3's deliberately broken files
        yield f"{CPYTHON}/{name}", "\n\n".join(described(tree, name.replace("/", ".")))


def described(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[str]:
    """The docstrings of a module, its classes and their methods, each below its name."""
    if text := ast.get_docstring(node):
        called = (
            f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
        )
        yield f"{name}{called}\n{text}"
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from described(
                child, f"{name}.{child.name}" if not isinstance(node, ast.Module) else child.name
            )


def drawn(documents: Iterable[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Documents of up to ``most`` characters in all, drawn by the hashes of their ids, in that order."""
    kept, characters = [], 0
    for name, text in sorted(documents, key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if characters + len(text) <= most:
            kept.append((name, text))
            characters += len(text)
    return kept


def write(
    path: Path, families: dict[str, list[tuple[str, str]]], unrepeated: Unrepeated
) -> dict[str, list[int]]:
    """Write families as JSON lines; documents and characters of each."""
    counts = {}
    with path.open("w", encoding="utf-8") as file:
        for family, documents in families.items():
            fresh = ((name, unrepeated.rest(name, text)) for name, text in documents)
            kept = drawn(unframed([(name, text) for name, text in fresh if text]), MOST_CHARACTERS)
            for name, text in kept:
                file.write(
                    json.dumps({"id": name, "text": text, "family": family}, ensure_ascii=False) + "\n"
                )
            counts[family] = [len(kept), sum(len(text) for _, text in kept)]
            print(
                f"{family}: {counts[family][0]} documents, {counts[family][1]:,} characters", file=sys.stderr
            )
    return counts


def main() -> None:
    """Write the corpus into the directory named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m examples.m3_mini.corpus DIRECTORY")
    directory = Path(sys.argv[1])
    roots = fetch([*HELD_OUT, *TRAINING], directory / "packages")
    lines = ["| family | package | licence | documents | characters |", "| --- | --- | --- | --- | --- |"]
    with NearDuplicates(SIMILAR, directory) as near:
        unrepeated = Unrepeated(near)
        for file, packages in (("held-out.jsonl", HELD_OUT), ("train.jsonl", TRAINING)):
            families: dict[str, list[tuple[str, str]]] = defaultdict(list)
            for package in packages:
                families[package.family].extend(read(package, roots[package.name]))
            listed = [
                (package.family, archive.stem, package.licence)
                for package in packages
                for archive in (directory / "packages").glob(f"{package.name}_*.deb")
            ]
            if packages is TRAINING:
                families[CPYTHON] = list(docstrings(Path(sysconfig.get_path("stdlib"))))
                listed.append((CPYTHON, f"docstrings of Python {sysconfig.get_python_version()}", "PSF-2.0"))
            counts = write(directory / file, families, unrepeated)
            for family, origin, licence in listed:
                documents, characters = counts[family]
                lines.append(f"| {family} | {origin} | {licence} | {documents} | {characters:,} |")
    (directory / "sources.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
