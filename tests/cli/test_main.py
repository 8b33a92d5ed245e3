"""What every command shares: exit codes, light start, help, configuration files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from m3build_cli.main import COMMANDS, cli, run
from m3build_formats import errors


def end_of(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_h_and_help_work_everywhere_and_give_an_example() -> None:
    for command in COMMANDS:
        for option in ("-h", "--help"):
            result = CliRunner().invoke(cli, [command, option])
            assert result.exit_code == 0
            assert f"\n    m3build {command}" in result.output, "an example on a line of its own"


def test_the_version_names_the_bank_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(["--version"]) == 0
    assert "bank format 1" in capsys.readouterr().out


def test_light_commands_import_nothing_heavy() -> None:
    code = (
        "import sys; import m3build, m3build_cli.main; from m3build_cli.main import cli;"
        "import m3build_cli.info_command, m3build_cli.info_text;"
        "bad = {'torch', 'transformers', 'faiss', 'pyarrow', 'numpy', 'tokenizers'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "taken"), [(None, "system"), ("system", "system"), ("none", None)])
def test_arrow_takes_its_memory_from_the_c_library_unless_told_otherwise(
    given: str | None, taken: str | None
) -> None:
    code = (
        "import atexit, os; from m3build_cli.main import run\n"
        "def tell():\n"
        "    import pyarrow\n"
        "    print(os.environ['ARROW_DEFAULT_MEMORY_POOL'], pyarrow.default_memory_pool().backend_name)\n"
        "atexit.register(tell); run(['--version'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    if given is not None:
        environment["ARROW_DEFAULT_MEMORY_POOL"] = given
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    variable, backend = done.stdout.splitlines()[-1].split()
    assert variable == (given or "system")
    assert taken is None or backend == taken


def test_a_path_that_is_no_bank_is_exit_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("info", "verify"):
        assert end_of([command, str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert str(tmp_path) in message
        assert "Traceback" not in message


def test_an_unknown_command_or_option_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(["complie"]) == 2
    assert end_of(["info", "--no-such-option"]) == 2
    assert "m3build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.InputError("x"), 3),
        (errors.MismatchError("x"), 4),
        (errors.NewerFormatError("x"), 4),
        (errors.CorruptError("x"), 5),
        (errors.ResourceError("x"), 6),
        (errors.GateError("x"), 7),
        (errors.BusyError("x"), 8),
        (OSError(28, "No space left on device", "bank/data"), 6),
        (MemoryError(), 6),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_failure_has_its_exit_code_and_no_traceback(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "main", fail)
    assert end_of(["info", "somewhere"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("m3build: ")
    assert "Traceback" not in printed.err


def test_debug_adds_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise errors.CorruptError("bad bytes")

    monkeypatch.setattr(cli, "main", fail)
    assert end_of(["--debug", "info", "somewhere"]) == 5
    assert "Traceback" in capsys.readouterr().err


def test_a_config_file_sets_options_and_refuses_unknown_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "m3build.toml"
    config.write_text('[compile]\nmodle = "x"\n', encoding="utf-8")
    assert end_of(["compile", "."]) == 2
    assert "modle" in capsys.readouterr().err
    config.write_text('[compile]\nmodel = "./no-such-model"\noutput = "bank"\n', encoding="utf-8")
    (tmp_path / "text.txt").write_text("some text", encoding="utf-8")
    assert end_of(["compile", "text.txt"]) == 2
    assert "no-such-model" in capsys.readouterr().err
    (tmp_path / "table.jsonl").write_text('{"text": "t", "url": "u"}\n', encoding="utf-8")
    config.write_text('[compile]\nkeep-field = "url"\nmodel = "./no-such-model"\n', encoding="utf-8")
    assert end_of(["compile", "table.jsonl", "-o", "bank"]) == 2
    assert "no-such-model" in capsys.readouterr().err
    config.write_text("[compile\n", encoding="utf-8")
    assert end_of(["info", "."]) == 2
    assert "TOML" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", ""],
        ["compile", ".", "-o", ""],
        ["compile", ".", "-o", "b", "--model", ""],
        ["merge", "", "-o", "b"],
    ],
)
def test_an_empty_path_is_not_the_current_directory(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert end_of(arguments) == 2
    assert "it is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "main", fail)
    assert end_of(["info", "somewhere"]) == 6
    assert "make room" in capsys.readouterr().err
