"""``log``, ``diff`` and ``rollback`` from the command line: text, JSON, exit codes, light start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))

from corpus_bank import Doc, commit_corpus
from sample_bank import add_version

import m3build
from m3build_cli.main import run
from m3build_cli.printable import code, printable
from m3build_formats.bank import list_versions, manifest_name, read_manifest
from m3build_formats.commit import BankWriter


def end_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(list(arguments))
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bank called ``bank`` of two versions, in the working directory."""
    monkeypatch.chdir(tmp_path)
    kept = [Doc("kept.md", ("one", "two"))]
    commit_corpus(tmp_path / "bank", [kept, [Doc("edited.md", ("three",)), Doc("gone.md", ("four",))]])
    commit_corpus(tmp_path / "bank", [kept, [Doc("edited.md", ("drei",)), Doc("come.md", ("fünf", "six"))]])
    return "bank"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def run_apart(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which says on its last line of errors what it imported."""
    script = (
        "import sys\n"
        "from m3build_cli.main import run\n"
        "try:\n"
        "    run(sys.argv[1:])\n"
        "finally:\n"
        "    print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        encoding=environment.pop("encoding", "utf-8"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        check=False,
    )


@pytest.mark.parametrize("arguments", [["log", "bank"], ["rollback", "bank", "--to", "1"], ["diff", "bank"]])
def test_they_start_without_what_they_do_not_need(bank: str, arguments: list[str]) -> None:
    done = run_apart(*arguments)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert "m3build_formats.bank" in imported
    heavy = {"torch", "transformers", "faiss", "tokenizers", "scipy", "pandas"}
    assert not imported & (heavy if arguments[0] == "diff" else heavy | {"numpy", "pyarrow", "zstandard"})


def test_log_shows_the_newest_version_first_with_its_change(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("log", bank) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (read_manifest(bank, version) for version in (1, 2))
    assert len(lines) == 3
    assert lines[0].split() == [
        "version",
        "created",
        "operation",
        "documents",
        "chunks",
        "bytes",
        "sha256",
        "change",
    ]
    assert lines[1].split()[:5] == ["2", second.created, "compile", "3", "5"]
    assert second.sha256[:12] in lines[1]
    assert lines[1].endswith("chunks +1")
    assert first.sha256[:12] in lines[2]
    assert lines[2].endswith("first version")


def test_log_in_json_has_whole_digests_that_pin_a_version(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(Path(bank))
    assert end_of("log", bank, "-n", "2", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["bank"], value["total"], len(value["versions"])) == (bank, 3, 2)
    newest, second = value["versions"]
    assert read_manifest(bank, expect=f"sha256:{newest['sha256']}").version == newest["version"] == 3
    assert newest["base"] == {"version": 2, "sha256": second["sha256"]}
    assert newest["change"] == {"documents": 0, "chunks": 0, "bytes": 0}
    assert (newest["operation"], newest["restores"]) == ("touch", None)
    assert end_of("log", bank, "-n", "1") == 0
    text = capsys.readouterr().out
    assert "counts as before" in text
    assert text.splitlines()[-1].split() == ["…", "and", "2", "older"]


def test_log_names_a_damaged_version_shows_the_others_and_ends_with_5(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(Path(bank))
    damage(Path(bank, "versions", manifest_name(2)))
    assert end_of("log", bank) == 5
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert "versions/00000002.json: its bytes do not have the SHA-256" in lines[2]
    assert "base version 2 cannot be compared with" in lines[1]
    assert printed.err == "m3build: bank: cannot read version 2\n"
    assert end_of("log", bank, "--json") == 5
    versions = json.loads(capsys.readouterr().out)["versions"]
    assert [item["version"] for item in versions] == [3, 2, 1]
    assert "00000002.json" in versions[1]["problem"]
    assert end_of("log", bank, "-n", "1") == 0


def test_log_says_what_a_rollback_restored(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("rollback", bank, "1") == 0
    capsys.readouterr()
    assert end_of("log", bank) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("as version 1; chunks -1")


def test_log_keeps_control_characters_of_a_stranger_off_the_terminal(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(Path(bank), "evil\x1b[2J\n" + "x" * 5000)
    assert end_of("log", bank) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 4
    assert max(map(len, out.splitlines())) < 200


def test_diff_names_documents_counts_and_bytes(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("diff", bank) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "### `bank`: versions 1 and 2"
    assert "| documents | 3 | 3 | +1 -1, 1 changed |" in lines
    assert "| chunks | 4 | 5 | +3 -2 |" in lines
    assert {"- added `come.md`", "- removed `gone.md`", "- changed `edited.md`"} <= set(lines)
    assert any(line.startswith("| bytes, total | ") for line in lines)
    assert any(line.startswith("Files: 9 shared (") for line in lines)
    assert "kept.md" not in out


def test_diff_in_json_has_what_the_text_has(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of("diff", bank, "--json", "--limit", "0") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["documents"]["added"] == {"total": 1, "ids": []}
    assert (value["chunks"]["added"]["total"], value["chunks"]["removed"]["total"]) == (3, 2)
    assert value["after"]["version"] == 2
    assert end_of("diff", "bank@2", "bank@1", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["documents"]["added"] == {"total": 1, "ids": ["gone.md"]}


def test_diff_of_a_version_with_itself_or_its_like_says_that_there_is_none(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("diff", "bank@2", "./bank") == 0
    assert capsys.readouterr().out == "No difference: both are version 2 of `./bank`\n"
    add_version(Path(bank))
    assert end_of("diff", bank) == 0
    assert capsys.readouterr().out == "No difference: `bank`: versions 2 and 3 hold the same\n"


def test_diff_of_a_first_version_shows_all_of_it(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(bank) / "versions" / manifest_name(2)).unlink()
    assert end_of("diff", bank) == 0
    out = capsys.readouterr().out
    assert out.startswith("### `bank`: version 1, made from none\n")
    assert "| documents |  | 3 | +3 |" in out


def test_diff_fits_a_comment_however_much_changed(
    bank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = []
    for side in ("old", "new"):
        shards = [
            [Doc(f"{side} {n}", (f"{side} text {n}",), metadata=f'{{"side":"{side}"}}') for n in range(200)],
            [Doc(f"same {n}", (f"{side} other text {n}",)) for n in range(100)],
            [Doc(f"told {n}", (f"told {n}",), title=side) for n in range(5)],
        ]
        commit_corpus(tmp_path / side, shards)
        with BankWriter(tmp_path / side) as writer:
            base = writer.current()
            assert base is not None
            number = 3 + len(sides)
            measured = {"key_error": number / 8, "value_error": number / 4, "spec": f"PQ{number}x8"}
            new = replace(
                base.contents,
                counts={
                    name: base.counts[name] if name == "chunks" else 1000 * number for name in base.counts
                },
                codec={**base.codec, **measured},
                index={**base.index, "recall": number / 10},
                sources={"settings": {f"setting {n}": f"{side} {n}" * 50 for n in range(50)}},
                model={**base.model, "name": side, "fingerprint": side},
            )
            writer.commit(new, base)
        sides.append(side)
    assert end_of("diff", "old", "new") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) < 250
    named = [line for line in lines if line.startswith(("- added", "- removed", "- changed"))]
    assert len(named) == 10
    assert {line.split()[1] for line in named} == {"added", "removed", "changed"}
    assert lines[-1] == "- and 490 more: 96 changed, 197 added, 197 removed"
    assert "| documents | 3,000 | 4,000 | +200 -200, 100 changed, 5 with other metadata alone |" in lines
    assert "| error of keys | 0.3750 | 0.5000 | +0.1250 |" in lines
    assert "- `codec.spec`: `PQ3x8` to `PQ4x8`" in lines
    assert any(line.startswith("- and ") and line.endswith(" more settings") for line in lines)
    assert end_of("diff", "old", "new", "--limit", "0") == 0
    assert "- added" not in capsys.readouterr().out


def test_diff_keeps_ids_of_strangers_within_their_lines(
    bank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ["a\nb", "\x1b[31mred\x07", "x" * 4096, "tick `two`` tick", "\u202egnp.exe", "显式/记忆.md", "`"]
    shard = [Doc(identity, (f"text {number}",)) for number, identity in enumerate(ids)]
    commit_corpus(tmp_path / "odd", [shard])
    assert end_of("diff", "odd") == 0
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\u202e")
    listed = [line.removeprefix("- added ") for line in out.splitlines() if line.startswith("- added")]
    assert len(listed) == len(ids)
    assert listed[0] == "`a\\nb`"
    assert listed[1] == "`\\x1b[31mred\\x07`"
    assert len(listed[2]) <= 90
    assert listed[3] == "```tick `two`` tick```"
    assert listed[5] == "`显式/记忆.md`"
    assert listed[6] == "`` ` ``"
    assert end_of("diff", "odd", "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"]["added"]["ids"] == ids


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_is_printed_whatever_the_terminal_can_show(bank: str, tmp_path: Path, encoding: str) -> None:
    commit_corpus(tmp_path / "odd", [[Doc("显式/é😀.md", ("text",))]])
    done = run_apart(
        "diff", "odd", PYTHONIOENCODING=encoding, encoding="utf-8" if encoding == "ascii" else encoding
    )
    assert done.returncode == 0
    assert "- added `" in done.stdout
    done = run_apart(
        "diff",
        "odd",
        "--json",
        PYTHONIOENCODING=encoding,
        encoding=encoding if encoding == "latin-1" else "utf-8",
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["documents"]["added"]["ids"] == ["显式/é😀.md"]


def test_a_bank_whose_name_is_no_utf_8_can_be_shown(bank: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xffnk")
    try:
        Path(bank).rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    for arguments in (["log", name, "--json"], ["diff", name], ["rollback", name, "1"]):
        done = run_apart(*arguments)
        assert done.returncode == 0, done.stderr


def test_rollback_says_what_it_did_and_how_to_go_forward_again(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("rollback", bank, "--to", "1", "--progress", "none") == 0
    printed = capsys.readouterr()
    done, forward = printed.out.splitlines()
    assert done.startswith("bank: version 3 holds what version 1 held (12 files are there and sound, ")
    assert forward == "To go forward again: m3build rollback bank --to 2"
    assert printed.err == ""
    assert end_of(*forward.split(": m3build ")[1].split(), "--quick", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["version"], value["restored"], value["left"], value["changed"]) == (4, 2, 3, True)
    assert value["forward"] == "m3build rollback bank --to 3"
    assert read_manifest(bank, 4).shards == read_manifest(bank, 2).shards
    assert end_of("rollback", bank, "2") == 0
    assert capsys.readouterr().out == (
        "bank: version 2 holds the same as version 4, which is current: nothing to do\n"
    )
    assert end_of("rollback", bank, "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["forward"] is None
    assert list_versions(bank) == [1, 2, 3, 4]


def test_the_way_forward_can_be_pasted_into_a_shell(
    bank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(bank).rename(tmp_path / "my bank; rm -rf $HOME")
    assert end_of("rollback", "my bank; rm -rf $HOME", "1", "--progress", "none") == 0
    assert "m3build rollback 'my bank; rm -rf $HOME' --to 2" in capsys.readouterr().out


def test_rollback_needs_one_version_that_is_there(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["7"], "has no version 7; it has 1, 2"),
        ([], "the newest of bank are 1, 2"),
        (["1", "--to", "2"], "version 1 or 2"),
        (["0"], "0 is not in the range"),
        (["one"], "not a valid integer"),
    ):
        assert end_of("rollback", bank, *arguments) == 2
        assert words in capsys.readouterr().err
    assert end_of("rollback", bank, "1", "--to", "1", "--quick") == 0


def test_rollback_shows_progress_on_standard_error_only(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of("rollback", bank, "1", "--progress", "lines", "--json") == 0
    printed = capsys.readouterr()
    assert "check: " in printed.err
    assert json.loads(printed.out)["changed"]


def test_rollback_to_what_is_damaged_ends_with_5_and_changes_nothing(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = read_manifest(bank, 1).shards[1].embeddings
    damage(Path(bank, "data", entry.name))
    assert end_of("rollback", bank, "1", "--progress", "none") == 5
    assert entry.name in capsys.readouterr().err
    assert list_versions(bank) == [1, 2]


def test_rollback_of_a_busy_bank_ends_with_8(bank: str, capsys: pytest.CaptureFixture[str]) -> None:
    with BankWriter(bank):
        assert end_of("rollback", bank, "1", "--wait", "0.1", "--progress", "none") == 8
    assert f"process {os.getpid()} is writing" in capsys.readouterr().err
    assert end_of("rollback", bank, "1", "--wait", "-1") == 2


def test_rollback_over_a_damaged_version_says_that_nothing_leads_back(
    bank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(Path(bank, "versions", manifest_name(2)))
    assert end_of("rollback", bank, "1", "--progress", "none") == 0
    assert "version 2 is damaged, so nothing leads back to it" in capsys.readouterr().out


def test_they_tell_a_place_that_is_no_bank_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["log"], ["diff"], ["rollback", "--to", "1"]):
        assert end_of(arguments[0], str(tmp_path / "none"), *arguments[1:]) == 2
        printed = capsys.readouterr()
        assert "no bank there" in printed.err
        assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_same_is_there_for_python(bank: str) -> None:
    assert {"log", "diff", "rollback"} <= set(m3build.__all__)
    assert [item.version for item in m3build.log(bank, limit=1)] == [2]
    assert m3build.diff(bank).documents.added.ids == ("come.md",)
    assert m3build.diff("bank@2", "bank@1", limit=0).documents.added.total == 1
    assert m3build.rollback(bank, 1, quick=True, wait_seconds=0).version == 3
    assert m3build.diff("bank@1").same


def test_printable_text_is_one_short_line_whatever_it_was() -> None:
    assert printable("plain text.md") == "plain text.md"
    assert printable("a\tb\r\n\x00\x7f\x85\u2028") == "a\\tb\\r\\n\\x00\\x7f\\x85\\u2028"
    assert printable("x" * 80) == "x" * 80
    assert printable("a" * 500 + "z" * 500, 11) == "aaaaa…zzzzz"
    for text in ("\x00" * 10_000, "😀" * 10_000, "\U000e0001" * 10_000):
        assert len(printable(text)) <= 80
        assert printable(text).isprintable()
    assert code("") == "`  `"
