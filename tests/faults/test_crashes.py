"""The short form of the crashes, and proof that the instrument sees every call and would see a fault."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import WRAPPED
from crashes import CrashCases
from scenarios import SCENARIOS, FirstVersion, Scenario
from tally import Tally

import m3build_formats

# A generator of the code under test that dies with its process is told to end, and then may make no call.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PACKAGE = Path(m3build_formats.__file__).parent
# Functions of os that do not reach the disk, or do it through wrapped ones.
HARMLESS = {
    "fspath",
    "fsdecode",
    "getpid",
    "strerror",
    "urandom",
    "environ",
    "path",
    "PathLike",
    "stat_result",
    "fwalk",
}


@pytest.mark.parametrize("make", SCENARIOS, ids=lambda make: make().name)
def test_a_crash_leaves_the_old_version_or_the_new_one(make: Callable[[], Scenario], tmp_path: Path) -> None:
    tally = Tally("crashes")
    cases = CrashCases(make(), tmp_path, tally)
    cases.process_deaths(step=31)
    cases.power_losses(most=4, step=11)
    cases.losses_after_return(most=4)
    cases.second_writers(most=2, step=17, between=1)
    tally.check()
    assert tally.counts["opened at the old version"] > 5
    assert tally.counts["opened at the new version"] > 5


@pytest.mark.parametrize(
    "forgotten",
    [
        r"place/bank/data/\.tmp-.*",
        r"place/bank/data",
        r"place/bank/versions/\.tmp-.*",
        r"place/bank/versions",
        r"place/bank",
        r"place",
        r"",
    ],
    ids=["data files", "data/", "the manifest", "versions/", "the bank", "the directory above", "the world"],
)
def test_a_commit_that_forgot_an_fsync_would_be_found(forgotten: str, tmp_path: Path) -> None:
    tally = Tally("crashes")
    cases = CrashCases(FirstVersion(), tmp_path, tally, lambda call: bool(re.fullmatch(forgotten, call.path)))
    cases.losses_after_return(most=12)
    assert tally.broken, "an fsync that does nothing makes no difference"


def test_every_function_of_os_that_formats_uses_is_seen() -> None:
    seen = {name for module, names in WRAPPED.items() if module is os for name in names}
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                constant = node.attr.isupper() or ("_" in node.attr and node.attr.upper() == node.attr)
                assert constant or node.attr in seen | HARMLESS, (
                    f"{file.name} line {node.lineno}: os.{node.attr}"
                )
            assert not (isinstance(node, ast.ImportFrom) and node.module == "os"), file.name


def test_the_kernel_sees_the_same_calls(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    world, log = tmp_path / "world", tmp_path / "log"
    world.mkdir()
    code = (
        "import json, sys; from pathlib import Path\n"
        "from recorder import Recorder; from scenarios import FirstVersion\n"
        f"with Recorder(Path({os.fspath(world)!r})) as recorder:\n"
        f"    FirstVersion().run(Path({os.fspath(world)!r}))\n"
        "print(json.dumps([call.name for call in recorder.calls if call.changes]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    traced = (
        "openat,write,pwrite64,writev,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat"
    )
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={traced},ftruncate,truncate"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    recorded = [name for name in json.loads(done.stdout) if name != "fsync"]
    kernel = [name for line in log.read_text().splitlines() if (name := _change_in(line, str(world)))]
    assert kernel == recorded


def _change_in(line: str, world: str) -> str | None:
    """The name of a call of strace's log that can change the world, as the recorder has it."""
    match = re.match(r"\d+\s+(\w+)\((.*)", line)
    if match is None or world not in line:
        return None
    name = re.sub(r"at2?$|64$|^openat$", "", match[1]) or "open"
    if name == "open":
        return name if "O_CREAT" in line or "O_TRUNC" in line else None
    return name
