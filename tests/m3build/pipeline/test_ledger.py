"""The ledger: whole entries or none, and keys that follow from content."""

from __future__ import annotations

from pathlib import Path

from m3build.pipeline.ledger import Ledger, piece_key


def test_what_was_put_comes_back_also_in_another_process_later(tmp_path: Path) -> None:
    Ledger(tmp_path).put("k", {"rows": 3})
    assert Ledger(tmp_path).get("k") == {"rows": 3}


def test_an_entry_that_cannot_be_read_counts_as_absent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "k").write_text('{"rows": ', encoding="utf-8")
    (tmp_path / "list").write_text("[1]", encoding="utf-8")
    assert ledger.get("k") is None
    assert ledger.get("list") is None
    assert ledger.get("never") is None


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    Ledger(tmp_path).put("k", {})
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_keys_follow_from_content_not_from_the_order_of_fields() -> None:
    assert piece_key("a", {"x": 1, "y": [1, 2]}) == piece_key("a", {"y": [1, 2], "x": 1})
    assert len({piece_key("a", {"x": 1}), piece_key("b", {"x": 1}), piece_key("a", {"x": 2})}) == 3
