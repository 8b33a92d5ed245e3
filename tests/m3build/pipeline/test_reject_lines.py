"""Rejects that wait on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.pipeline.reject_lines import RejectSink, read_rejects
from m3build.records import Reject

FIRST, SECOND = Reject("a.txt", "file", "one"), Reject("b.txt", "line 2", "two", "unsupported")


@settings(max_examples=50, deadline=None)
@given(
    rejects=st.lists(
        st.builds(
            Reject,
            st.text(st.characters()),  # lone surrogates too, from names that are not UTF-8
            st.text(),
            st.text(),
            st.sampled_from(["reject", "unsupported"]),
        ),
        max_size=6,
    )
)
def test_rejects_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rejects: list[Reject]
) -> None:
    path = tmp_path_factory.mktemp("place") / "rejects.jsonl.zst"
    with RejectSink(path) as sink:
        for reject in rejects:
            sink.write(reject)
    assert list(read_rejects(path)) == rejects
    assert path.exists() == bool(rejects)


def write(path: Path, *rejects: Reject | None) -> None:
    """Write rejects, and fail at the first that is none."""
    with RejectSink(path) as sink:
        for reject in rejects:
            if reject is None:
                raise KeyboardInterrupt
            sink.write(reject)


def test_rejects_of_an_earlier_try_do_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl.zst"
    write(path, FIRST, SECOND)
    assert list(read_rejects(path)) == [FIRST, SECOND]
    write(path)
    assert list(read_rejects(path)) == []
    with pytest.raises(KeyboardInterrupt):
        write(path, FIRST, None)
    assert list(tmp_path.iterdir()) == []
