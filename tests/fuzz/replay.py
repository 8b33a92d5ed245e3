"""Feeds kept inputs to their target once, as a debugger wants it.

python tests/fuzz/replay.py tests/fuzz/cases/TARGET-…
"""

from __future__ import annotations

import sys
from pathlib import Path

import paths  # noqa: F401 - makes what targets import found
from targets import TARGETS


def main() -> None:
    for argument in sys.argv[1:]:
        path = Path(argument)
        accepted = TARGETS[path.name.split("-")[0]].run(path.read_bytes())
        print(f"{path}: {'accepted' if accepted else 'refused'}")


if __name__ == "__main__":
    main()
