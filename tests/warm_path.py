"""A directory for PATH in which ``m3build`` is this checkout's, and starts in milliseconds: for scripts that
run many commands.

``m3build`` there is a few lines that hand arguments and working directory over a socket and print what comes
back; the command itself is a process of ``warm_processes``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from warm_processes import Command, Surroundings

_SHIM = """#!{python}
import json, os, sys
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
from multiprocessing.connection import Client
with Client({address!r}) as server:
    server.send_bytes(json.dumps([sys.argv[1:], os.getcwd()]).encode())
    code, out, err = json.loads(server.recv_bytes())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@contextmanager
def warm_path() -> Iterator[tuple[Path, list[list[str]]]]:
    """The directory, and the list of the commands that were run, which grows."""
    # Not under pytest's directories: names of sockets are short.
    place = Path(tempfile.mkdtemp(prefix="m3b-"))
    address = str(place / "socket")
    commands: list[list[str]] = []
    try:
        with Listener(address, "AF_UNIX") as listener:
            server = threading.Thread(target=_serve, args=(listener, place, commands), daemon=True)
            server.start()
            directory = place / "bin"
            directory.mkdir()
            shim = directory / "m3build"
            shim.write_text(_SHIM.format(python=sys.executable, address=address), encoding="utf-8")
            shim.chmod(0o755)
            yield directory, commands
            with Client(address) as last:
                last.send_bytes(b"null")
            server.join()
    finally:
        shutil.rmtree(place)


def _serve(listener: Listener, place: Path, commands: list[list[str]]) -> None:
    number = 0
    while True:
        with listener.accept() as connection:
            asked = json.loads(connection.recv_bytes())
            if asked is None:
                return
            number += 1
            commands.append(asked[0])
            _answer(connection, asked[0], Path(asked[1]), place / str(number))


def _answer(connection: Connection, arguments: list[str], directory: Path, place: Path) -> None:
    place.mkdir()
    command = Command(arguments, Surroundings(directory), place)
    code = command.wait()
    answer = [code if code >= 0 else 128 - code, command.output, command.errors]
    connection.send_bytes(json.dumps(answer).encode())
