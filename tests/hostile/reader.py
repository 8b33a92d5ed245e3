"""The process that reads hostile banks for the tests: a crash ends it alone, and it watches itself.

    python tests/hostile/reader.py SOUND_BANK

It reads the sound bank once, so that everything is imported, and says so. Then it answers each line of
standard input, the path of a bank and whether to run all commands on it, with a line of JSON: the outcome of
every step (`reading.py`), what was opened that no reader of a bank has to open, and by how many bytes its
memory grew at most. It is given a limited address space, and a limited time of the processor for each bank
(SIGPROF ends it).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "formats"), str(ROOT / "cli"), str(HERE)]

PROCESSOR_SECONDS = 10
ADDRESS_SPACE = 1 << 30
"""Bytes that the process may map beyond what it has when it is ready."""

_MISSING = "sentence_transformers"
"""An optional library that the process does without: what a name in a bank can bring about must not depend on
what is installed."""
_DATA_NAME = re.compile(r"[0-9a-f]{64}\.[a-z.]+|[0-9]{8}\.json|versions|data", re.ASCII)
_WATCHED = frozenset(
    [
        "open", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty", "os.link", "os.mkdir",
        "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.system", "os.truncate",
        "os.utime", "pickle.find_class", "shutil.rmtree", "socket.connect", "socket.getaddrinfo",
        "subprocess.Popen", "import", "exec", "compile",
    ]
)  # fmt: skip


class Watch:
    """An audit hook that notes what Python does to files, processes and the network while ``bank`` is set."""

    def __init__(self) -> None:
        self.bank: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.bank is None or event not in _WATCHED:
            return
        if event == "open" and self._is_allowed(*arguments[:3]):
            return
        if event == "import" and arguments[0] == _MISSING:
            return
        self.seen.append(f"{event} {arguments[:3]!r}"[:300])

    def _is_allowed(self, path: object, _mode: object, flags: object) -> bool:
        if isinstance(path, int):
            # A descriptor, whose opening was looked at.
            return True
        reads_only = not int(str(flags or 0)) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        return reads_only and (name == self.bank or _DATA_NAME.fullmatch(str(name)) is not None)


def memory(field: str) -> int:
    """A line of /proc/self/status in bytes, 0 where there is none (macOS)."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
    return int(match[1]) << 10 if match else 0


def reset_peak() -> None:
    """Makes VmHWM start anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # FAISS prints to standard output of its own accord.
    os.dup2(2, 1)
    sys.modules[_MISSING] = None  # type: ignore[assignment]
    from reading import read_everything

    import m3build.embed.neural

    assert m3build.embed.neural
    watch = Watch()
    sound = Path(sys.argv[1])
    read_everything(sound)
    limit = memory("VmSize") + ADDRESS_SPACE
    if limit > ADDRESS_SPACE:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        path, commands = json.loads(line)
        before = memory("VmRSS")
        reset_peak()
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
        watch.bank, watch.seen = path, []
        outcomes = read_everything(Path(path), commands)
        watch.bank = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = {"outcomes": outcomes, "opened": watch.seen, "grown": max(0, memory("VmHWM") - before)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
