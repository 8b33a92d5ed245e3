"""Settings: what was said, then the bank's, then the defaults; differences are refused by name."""

from __future__ import annotations

import pytest

from m3build.config import (
    CompileOptions,
    RejectLimit,
    Settings,
    option_name,
    parse_reject_limit,
    resolve,
)
from m3build_formats.errors import MismatchError, UsageError

BANK = Settings(model="a-model", keep_fields=("lang",), sparse_tokens="16").to_json()


def test_a_new_bank_takes_what_was_said_and_the_defaults() -> None:
    settings = resolve(CompileOptions(model="m", title=True), None, rebuild=False)
    assert settings == Settings(model="m", title=True)


def test_options_that_were_not_said_come_from_the_bank() -> None:
    settings = resolve(CompileOptions(), BANK, rebuild=False)
    assert settings == Settings(model="a-model", keep_fields=("lang",), sparse_tokens="16")


def test_saying_what_the_bank_has_is_no_difference() -> None:
    assert (
        resolve(CompileOptions(sparse_tokens="16", keep_fields=("lang",)), BANK, False).sparse_tokens == "16"
    )


def test_every_difference_is_named_with_both_values() -> None:
    with pytest.raises(MismatchError) as caught:
        resolve(CompileOptions(sparse_tokens="8", codec="none"), BANK, rebuild=False)
    message = str(caught.value)
    assert "--sparse-tokens is 16 in the bank, 8 here" in message
    assert "--codec is auto in the bank, none here" in message
    assert "--rebuild" in message


def test_rebuild_allows_differences_and_keeps_the_rest() -> None:
    settings = resolve(CompileOptions(sparse_tokens="8"), BANK, rebuild=True)
    assert (settings.sparse_tokens, settings.keep_fields) == ("8", ("lang",))


def test_without_a_model_it_is_the_one_in_the_package() -> None:
    assert resolve(CompileOptions(), None, rebuild=False).model == "m3-mini"
    assert resolve(CompileOptions(), {"model": "another"}, rebuild=False).model == "another"


@pytest.mark.parametrize(
    "options",
    [
        CompileOptions(model="m", encoding="no-such-encoding"),
        CompileOptions(model="m", encoding_errors="ignore"),
        CompileOptions(model="m", near_duplicates=1.1),
        CompileOptions(model="m", near_duplicates=-0.1),
        CompileOptions(model="m", shard_chunks=0),
        CompileOptions(model="m", max_document_bytes=0),
    ],
)
def test_values_that_cannot_be_meant_are_refused(options: CompileOptions) -> None:
    with pytest.raises(UsageError, match="--"):
        resolve(options, None, rebuild=False)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0", RejectLimit(0, None)),
        ("250", RejectLimit(250, None)),
        ("1%", RejectLimit(None, 0.01)),
        (" 2.5 % ", RejectLimit(None, 0.025)),
    ],
)
def test_reject_limits_are_counts_or_shares(text: str, limit: RejectLimit) -> None:
    assert parse_reject_limit(text) == limit


@pytest.mark.parametrize("text", ["", "-1", "101%", "1.5", "all", "%"])
def test_other_reject_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-rejects"):
        parse_reject_limit(text)


def test_every_setting_is_an_option_and_every_option_a_setting() -> None:
    assert set(CompileOptions.__dataclass_fields__) == set(Settings.__dataclass_fields__)
    assert option_name("keep_fields") == "--keep-field"
