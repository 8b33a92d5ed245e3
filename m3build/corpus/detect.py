"""Which format and compression a file has: by its name where that says it, else by its first bytes.

Rules, in this order:
1. `.gz`, `.bz2`, `.xz`, `.zst` at the end of the name is the compression; the name before it counts for the
   rest.
2. A known extension is the format. `.txt` behind another known one gives way to it (Sphinx ships its
   sources as `index.rst.txt`); an extension that several formats claim (`.json` for an array or for lines)
   is decided by content among those.
3. Anything else is sniffed, through a compression that only the content shows: the man page `ls.1.gz` is
   text, a `part-0001` of JSON lines is that.
4. In a directory, style sheets, scripts and the like are passed over although they are text; a file that
   the user names is read.
"""

from __future__ import annotations

import os

from m3build.corpus.compression import MAGIC, SUFFIXES, open_path
from m3build.corpus.encoding import HEAD_BYTES, looks_binary, marked_encoding
from m3build.corpus.registry import Format, formats, formats_by_extension
from m3build.corpus.source import WHOLE_FILE, BadInput

PASSED_OVER = frozenset(
    {".css", ".js", ".mjs", ".map", ".svg", ".rtf", ".ps", ".eps", ".xml", ".xsl", ".xsd", ".woff", ".ttf"}
)
_OTHER_KINDS = (b"%PDF-", b"%!PS", b"{\\rtf", b"<?xml", b"<svg")


def detect(path: str, named: bool = False) -> tuple[str, str | None]:
    """(format, compression) of the file at ``path``. Raises BadInput if it is of no kind that can be read,
    OSError if it cannot be opened."""
    stem, compression = _split_compression(os.path.basename(path).lower())
    extension = _extension(stem)
    candidates = formats_by_extension().get(extension, ())
    if len(candidates) == 1:
        return candidates[0].name, compression
    if extension in PASSED_OVER and not named:
        raise BadInput(WHOLE_FILE, f"{extension} files are not read from a directory", "unsupported")
    head, compression = _head(path, compression)
    best = _sniff(head, candidates or tuple(formats().values()))
    if best is not None:
        return best.name, compression
    if candidates:
        # Unknowable (empty, or in an encoding without a mark): the format whose first extension this is.
        own = next((form for form in candidates if form.extensions[0] == extension), candidates[0])
        return own.name, compression
    raise BadInput(WHOLE_FILE, "content of no kind that m3build reads", "reject" if named else "unsupported")


def _split_compression(name: str) -> tuple[str, str | None]:
    stem, suffix = os.path.splitext(name)
    return (stem, SUFFIXES[suffix]) if suffix in SUFFIXES else (name, None)


def _extension(name: str) -> str:
    stem, extension = os.path.splitext(name)
    if extension == ".txt":
        inner = os.path.splitext(stem)[1]
        if inner in formats_by_extension():
            return inner
    return extension


def _head(path: str, compression: str | None) -> tuple[bytes, str | None]:
    """The first decompressed bytes, and the compression: that of the name, else what the content shows."""
    if compression is None:
        with open_path(path, None) as stream:
            head = stream.read(HEAD_BYTES)
        compression = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
        if compression is None:
            return head, None
    head = b""
    with open_path(path, compression) as stream:
        try:
            while len(head) < HEAD_BYTES and (piece := stream.read1(HEAD_BYTES - len(head))):
                head += piece
        except BadInput:
            if not head:
                raise
    return head, compression


def _sniff(head: bytes, candidates: tuple[Format, ...]) -> Format | None:
    text: str | None = None
    if not looks_binary(head):
        text = head.decode(marked_encoding(head) or "utf-8", "replace")
        if head.lstrip().startswith(_OTHER_KINDS) and "<html" not in text.lower():
            text = None
    scores = [(form.sniff(head, text), form) for form in candidates]
    score, best = max(scores, key=lambda pair: pair[0])
    return best if score else None
