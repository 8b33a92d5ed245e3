"""The tutorial runs as it stands, and what it prints is a generation and what that read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "corpus" / "notes"
# Other tests run on the other cores.
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_tutorial_goes_from_a_folder_to_a_generation_that_reads_it(
    tmp_path: Path,
) -> None:
    prompt = "A bank is a directory that holds memories"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "read_while_generating.py"),
            str(FOLDER),
            str(tmp_path / "bank"),
            prompt,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'formats'}:{ROOT / 'cli'}", "PATH": "", **QUIET},
    )
    assert done.returncode == 0, done.stderr
    generation, _, read = done.stdout.partition("\nIt read:\n")
    assert generation.startswith(prompt)
    assert len(generation) > len(prompt) + 10
    lines = read.strip().splitlines()
    assert 1 <= len(lines) <= 5
    # A document's id starts with the file that it stands in.
    files = tuple(path.name for path in FOLDER.iterdir())
    assert all(line.split()[1].startswith(files) for line in lines)
