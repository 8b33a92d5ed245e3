"""From SOURCE arguments to files: directories, links, globs, and what else a file system can hold."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from m3build.corpus import SourceOptions, discover, read_range
from m3build.corpus.source import SourceFile, SourceRange
from m3build.records import Reject
from m3build_formats.errors import UsageError


def names(files: list[SourceFile]) -> list[str]:
    return [file.name for file in files]


def test_a_directory_is_walked_sorted_and_without_hidden_files(make: Any, find: Any, tmp_path: Path) -> None:
    for name in ("b/a.txt", "a.txt", "b.txt", "b/c/d.txt", ".hidden.txt", ".git/x.txt", "B.txt"):
        make(name, "text")
    files, rejects = find(tmp_path)
    assert names(files) == ["B.txt", "a.txt", "b.txt", "b/a.txt", "b/c/d.txt"]
    assert not rejects
    assert [file.bytes for file in files] == [4] * 5


def test_a_named_file_goes_by_its_file_name_even_if_hidden(make: Any, find: Any) -> None:
    files, _ = find(make("deep/er/.a.txt", "text"))
    assert names(files) == [".a.txt"]
    assert files[0].named


def test_the_working_directory_and_the_form_of_a_path_change_no_name(
    make: Any, find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("docs/a/b.txt", "text")
    expected = names(find(tmp_path / "docs")[0])
    monkeypatch.chdir(tmp_path / "docs")
    assert names(find(".")[0]) == names(find("../docs/")[0]) == names(find("a/../../docs")[0]) == expected


def test_a_glob_gives_paths_below_its_fixed_part(make: Any, find: Any, tmp_path: Path) -> None:
    for name in ("docs/a/x.md", "docs/b/x.md", "docs/b/y.txt", "docs/.c/x.md"):
        make(name, "text")
    assert names(find(f"{tmp_path}/docs/*/x.md")[0]) == ["a/x.md", "b/x.md"]
    assert names(find(f"{tmp_path}/docs/**/*.md")[0]) == ["a/x.md", "b/x.md"]
    assert names(find(f"{tmp_path}/docs/**")[0]) == ["a/x.md", "b/x.md", "b/y.txt"]
    assert names(find(f"{tmp_path}/**/b")[0]) == ["docs/b/x.md", "docs/b/y.txt"]
    assert names(find(f"{tmp_path}/**/b/*.txt")[0]) == ["docs/b/y.txt"]
    assert names(find(f"{tmp_path}/d*")[0]) == ["docs/a/x.md", "docs/b/x.md", "docs/b/y.txt"]


def test_a_glob_across_directories_does_not_follow_links_in_circles(
    make: Any, find: Any, tmp_path: Path
) -> None:
    make("docs/a.txt", "text")
    for link in "xyz":
        (tmp_path / "docs" / link).symlink_to(".")
    files, rejects = find(f"{tmp_path}/docs/**/*.txt")
    assert names(files) == ["a.txt"]
    assert not rejects
    assert len(find(f"{tmp_path}/docs/**")[1]) == 3


def test_a_file_whose_name_has_wildcards_is_found_by_that_name(make: Any, find: Any, tmp_path: Path) -> None:
    make("a[1].txt", "text")
    make("a1.txt", "text")
    assert names(find(tmp_path / "a[1].txt")[0]) == ["a[1].txt"]


def test_sources_that_are_not_there_are_usage_errors(find: Any, tmp_path: Path) -> None:
    for source in (tmp_path / "no-such", tmp_path / "no-*", "-"):
        with pytest.raises(UsageError):
            find(source)
    with pytest.raises(UsageError):
        find()


def test_equal_relative_paths_of_two_sources_stay_distinct_in_any_order(
    make: Any, find: Any, tmp_path: Path
) -> None:
    for name in ("one/a.txt", "one/b.txt", "two/a.txt"):
        make(name, "text")
    forth, back = find(tmp_path / "one", tmp_path / "two")[0], find(tmp_path / "two", tmp_path / "one")[0]
    assert forth == back
    assert names(forth) == ["b.txt", "one/a.txt", "two/a.txt"]


def test_a_file_in_two_sources_counts_once(make: Any, find: Any, tmp_path: Path) -> None:
    make("docs/sub/a.txt", "text")
    assert names(find(tmp_path / "docs", tmp_path / "docs/sub", tmp_path / "docs/sub/a.txt")[0]) == [
        "sub/a.txt"
    ]


def test_a_dangling_link_is_a_reject(make: Any, find: Any, tmp_path: Path) -> None:
    make("a.txt", "text")
    (tmp_path / "b.txt").symlink_to("nowhere")
    files, rejects = find(tmp_path)
    assert names(files) == ["a.txt"]
    assert [(reject.source, reject.kind) for reject in rejects] == [("b.txt", "reject")]
    assert "dangling" in rejects[0].reason


def test_namesakes_that_cannot_be_read_are_all_counted(make: Any, find: Any, tmp_path: Path) -> None:
    for directory in ("one", "two"):
        make(f"{directory}/a.txt", "text")
        (tmp_path / directory / "b.txt").symlink_to("nowhere")
    _, rejects = find(tmp_path / "one", tmp_path / "two", tmp_path / "one")
    assert [reject.source for reject in rejects] == ["one/b.txt", "two/b.txt"]


def test_a_source_that_is_a_dangling_link_is_a_reject(find: Any, tmp_path: Path) -> None:
    (tmp_path / "b.txt").symlink_to("nowhere")
    files, rejects = find(tmp_path / "b.txt")
    assert not files
    assert len(rejects) == 1


def test_a_link_that_leads_back_to_itself_is_a_reject(make: Any, find: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("b.txt")
    (tmp_path / "b.txt").symlink_to("a.txt")
    files, rejects = find(tmp_path)
    assert not files
    assert [reject.source for reject in rejects] == ["a.txt", "b.txt"]


def test_a_linked_directory_is_followed(make: Any, find: Any, tmp_path: Path) -> None:
    make("outside/x.txt", "text")
    make("docs/a.txt", "text")
    (tmp_path / "docs/link").symlink_to("../outside")
    assert names(find(tmp_path / "docs")[0]) == ["a.txt", "link/x.txt"]


def test_a_directory_cycle_is_a_reject_and_ends(make: Any, find: Any, tmp_path: Path) -> None:
    make("docs/sub/a.txt", "text")
    (tmp_path / "docs/sub/up").symlink_to("..")
    files, rejects = find(tmp_path / "docs")
    assert names(files) == ["sub/a.txt"]
    assert [reject.source for reject in rejects] == ["sub/up"]
    assert "lies in" in rejects[0].reason


def test_a_cycle_through_a_directory_outside_is_a_reject(make: Any, find: Any, tmp_path: Path) -> None:
    make("docs/a.txt", "text")
    make("outside/b.txt", "text")
    (tmp_path / "docs/out").symlink_to("../outside")
    (tmp_path / "outside/back").symlink_to("../docs")
    files, rejects = find(tmp_path / "docs")
    assert names(files) == ["a.txt", "out/b.txt"]
    assert [reject.source for reject in rejects] == ["out/back"]


def test_a_web_of_links_is_walked_in_time(make: Any, find: Any, tmp_path: Path) -> None:
    # Followed blindly, 30 levels of two links each are a billion directories.
    for level in range(30):
        directory = tmp_path / "levels" / f"{level:02}"
        directory.mkdir(parents=True)
        for link in "ab":
            (directory / link).symlink_to(f"../{level + 1:02}")
    make("levels/30/x.txt", "text")
    assert names(find(tmp_path / "levels" / "00")[0]) == ["a/" * 30 + "x.txt"]


def test_pipes_and_sockets_are_passed_over_unopened(make: Any, find: Any, tmp_path: Path) -> None:
    make("a.txt", "text")
    os.mkfifo(tmp_path / "pipe.txt")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket is at most about a hundred bytes long
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
        listener.close()
    files, rejects = find(tmp_path)
    assert names(files) == ["a.txt"]
    assert [(reject.source, reject.kind) for reject in rejects] == [
        ("pipe.txt", "unsupported"),
        ("socket", "unsupported"),
    ]


def test_a_source_that_is_a_pipe_is_a_usage_error(find: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="SOURCE -"):
        find(tmp_path / "pipe")


def test_a_picture_in_a_directory_is_unsupported_and_named_it_is_a_reject(
    make: Any, find: Any, tmp_path: Path
) -> None:
    picture = make("a.png", b"\x89PNG\r\n\x1a\n\0\0")
    assert find(tmp_path)[1][0].kind == "unsupported"
    assert find(picture)[1][0].kind == "reject"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", "some words".encode("utf-16-le")])
def test_what_is_called_text_and_is_not_is_a_reject_and_not_passed_over(
    make: Any, read: Any, tmp_path: Path, content: bytes
) -> None:
    path = make("a.txt", content)
    for source in (tmp_path, path):
        (found,) = read(source).rejects
        assert found.kind == "reject"
        assert "give --encoding utf-16-le" in found.reason


def test_banks_among_the_sources_are_passed_over(make: Any, find: Any, tmp_path: Path) -> None:
    make("a.txt", "text")
    # One with a version, one that was stopped before it had any, and two directories that only look like it.
    make("bank/versions/00000001.json", "{}")
    make("bank/data/x.txt", "text")
    make("stopped/data/x.txt", "text")
    make("stopped/writer.lock", "")
    (tmp_path / "stopped" / "versions").mkdir()
    make("docs/versions/1.txt", "text")
    make("docs/data/x.txt", "text")
    make("other/versions/00000001.json", '[{"text": "t"}]')
    files, rejects = find(tmp_path)
    assert names(files) == ["a.txt", "docs/data/x.txt", "docs/versions/1.txt", "other/versions/00000001.json"]
    assert not rejects
    assert names(find(f"{tmp_path}/*")[0]) == names(files)
    with pytest.raises(UsageError, match="is a bank"):
        find(tmp_path / "bank")


def test_a_file_that_cannot_be_opened_is_a_reject(
    make: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("a.jsonl", '{"text": "a"}\n')

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("m3build.corpus.compression.open", refuse, raising=False)
    found = read(path)
    assert "permission denied" in found.reason
    assert str(path) not in found.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_without_permission_is_a_reject(make: Any, find: Any, tmp_path: Path) -> None:
    make("docs/closed/a.txt", "text")
    (tmp_path / "docs/closed").chmod(0)
    try:
        files, rejects = find(tmp_path / "docs")
    finally:
        (tmp_path / "docs/closed").chmod(0o700)
    assert not files
    assert "permission" in rejects[0].reason


@pytest.mark.parametrize(
    "name", ["a.txt", "a.html", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.txt.gz"]
)
def test_a_file_that_vanished_or_became_a_directory_is_a_reject(tmp_path: Path, name: str) -> None:
    form = "text" if "txt" in name else name.split(".")[1]
    for path in (tmp_path / name, tmp_path):
        part = SourceRange(SourceFile(str(path), name, 1, form, "gz" if name.endswith("gz") else None))
        (reject,) = read_range(part, SourceOptions())
        assert isinstance(reject, Reject)
        assert str(tmp_path) not in reject.reason


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path: Path, read: Any) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    document = read(tmp_path).only
    assert document.id == document.source == "caf\\xe9.txt"
    document.id.encode()


def test_the_order_of_directory_listing_changes_nothing(
    make: Any, find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/a.txt", "a/x.txt", "c.txt"):
        make(name, "text")
    (tmp_path / "l1").symlink_to("a")
    (tmp_path / "l2").symlink_to("b")
    expected = find(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            self._inner = scandir(path)

        def __enter__(self) -> Any:
            return reversed(list(self._inner))

        def __exit__(self, *_: object) -> None:
            self._inner.close()

    monkeypatch.setattr(os, "scandir", Backwards)
    assert find(tmp_path) == expected


def test_the_modification_time_of_a_file_changes_nothing(make: Any, find: Any, tmp_path: Path) -> None:
    path = make("a.txt", "text")
    before = find(tmp_path)
    os.utime(path, (time.time() + 1000, time.time() + 1000))
    assert find(tmp_path) == before


def test_rejects_come_in_order_of_name(make: Any, tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / name).symlink_to("nowhere")
    rejects: list[Reject] = []
    discover([str(tmp_path)], rejects.append)
    assert [reject.source for reject in rejects] == ["a", "b", "c"]
