"""Runs the JavaScript reader, and spoils banks for it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from any_codec_bank import TEXTS

from m3build_formats.layout import reference_text

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "read_bank_js" / "main.mjs"
NODE = shutil.which("node")
AN_ID = hashlib.sha256(reference_text(*TEXTS[0]).encode()).hexdigest()

needs_node = pytest.mark.skipif(NODE is None, reason="needs node on PATH")


def node(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(NODE), str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def facts(*arguments: object) -> Any:
    result = node(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(exit_code: int, *arguments: object) -> str:
    """The one line of an error with this exit code."""
    result = node(*arguments)
    assert (result.returncode, result.stdout) == (exit_code, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def seal(bank: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the manifest and gives it the digest that its new bytes have."""
    path = bank / "versions" / "00000001.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["sha256"]
    edit(value)
    write_sealed(path, json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def write_sealed(path: Path, text: str) -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f'{text[:-1]},"sha256":"{digest}"}}\n', encoding="utf-8")
