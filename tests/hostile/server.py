"""Starts the process that reads hostile banks, and starts it again when a bank has killed it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATIENCE_SECONDS = 120
"""Of the clock: only a reader that waits for something gets there. One that computes is stopped by the limit
of processor time in `reader.py`."""


class Reader:
    """The reading process; ``sound`` are the paths of the sound banks by the spec of their index, ``place``
    is its working directory."""

    def __init__(self, sound: dict[str, Path], place: Path) -> None:
        self._place = place
        self._sound_paths = sound
        self._sound: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, bank: Path, commands: bool = False) -> dict[str, Any]:
        """What came of reading a bank; fails the test where the process did not live to say so."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps([os.fspath(bank), commands]).encode() + b"\n")
        process.stdin.flush()
        answer: dict[str, Any] = self._answer(process)
        return answer

    def sound(self, spec: str) -> dict[str, Any]:
        """The outcomes of the sound bank with this index."""
        if spec not in self._sound:
            self._sound[spec] = self.read(self._sound_paths[spec], commands=True)["outcomes"]
        found: dict[str, Any] = self._sound[spec]
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            path = next(iter(self._sound_paths.values()))
            self._process = subprocess.Popen(
                [sys.executable, HERE / "reader.py", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=self._place,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            self._answer(self._process)
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> Any:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(PATIENCE_SECONDS) else b""
        if line:
            return json.loads(line)
        process.kill()
        code = process.wait()
        self.close()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        words = {"SIGPROF": "it computed for too long", "SIGKILL": "it hung"}.get(how, "it crashed")
        raise AssertionError(f"the reading process did not survive this bank: {words} ({how})")
