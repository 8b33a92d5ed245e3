"""Manifests whose JSON is odd. Their digests are right, so it gets parsed."""

from __future__ import annotations

import json
from typing import Any

from case import add, case, each
from forge import Forge, seal

Edit = Any


def _raw(forge: Forge, body: bytes) -> None:
    forge.manifest_bytes = seal(body)


def _text(forge: Forge) -> str:
    return json.dumps(forge.manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@each(
    {
        "a list": "[]}",
        "null": "null}",
        "a string": '"x"}',
        "an empty object": "{}",
        "lists in lists": "[" * 100_000 + "]" * 100_000 + "}",
        "objects in objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "a key twice": '{"format":"m3build-bank","format":"m3build-bank"}',
        "a key twice within": '{"format":"m3build-bank","counts":{"rows":1,"rows":2}}',
        "NaN": '{"format":"m3build-bank","version":NaN}',
        "infinity": '{"format":"m3build-bank","version":-Infinity}',
        "a number that overflows": '{"format":"m3build-bank","version":1e400}',
        "an exponent of a million digits": '{"format":"m3build-bank","version":1e' + "9" * 1_000_000 + "}",
        "an integer of 10,000 digits": '{"format":"m3build-bank","version":' + "9" * 10_000 + "}",
        "an integer just too large": '{"format":"m3build-bank","version":9007199254740992}',
        "an escaped surrogate": '{"format":"m3build-bank","version":"\\ud800"}',
        "a raw surrogate": '{"format":"m3build-bank","version":"\ud800"}',
        "a surrogate as key": '{"format":"m3build-bank","\\udfff":1}',
        "surrogates that pair across strings": '{"format":"m3build-bank","sources":["\\ud83d","\\ude00"]}',
        "a byte order mark": '\ufeff{"format":"m3build-bank"}',
        "a trailing comma": '{"format":"m3build-bank",}',
        "a comment": '{"format":"m3build-bank"/**/}',
        "two values": '{"format":"m3build-bank"}{"format":"m3build-bank"}',
        "a control character": '{"format":"m3build-bank","version":"\x01"}',
        "another format": '{"format":"m3build-bonk"}',
        "a format that is a list": '{"format":["m3build-bank"]}',
        "an object as format version": '{"format":"m3build-bank","format_version":{}}',
    },
    step="manifest",
)
def the_manifest_is(forge: Forge, text: str) -> None:
    """JSON that another parser may take."""
    _raw(forge, text.encode("utf-8", "surrogatepass"))


@each(
    {
        "not UTF-8": b'{"format":"m3build-bank","operation":"\xff"}',
        "overlong": b'{"format":"m3build-bank","operation":"\xc0\xaf"}',
        "beyond Unicode": b'{"format":"m3build-bank","operation":"\xf4\x90\x80\x80"}',
        "UTF-16": '{"format":"m3build-bank"}'.encode("utf-16"),
        "one brace": b"}",
    },
    step="manifest",
)
def the_bytes_of_the_manifest_are(forge: Forge, body: bytes) -> None:
    """Text in no encoding that JSON has."""
    _raw(forge, body)


@each(
    {
        "cut off": lambda data: data[:-1],
        "nothing": lambda data: b"",
        "the digest alone": lambda data: data[-78:],
        "an upper-case digest": lambda data: data[:-67] + data[-67:-3].upper() + data[-3:],
        "carriage return": lambda data: data[:-1] + b"\r\n",
        "a byte after it": lambda data: data + b" ",
        "another digest": lambda data: data[:-67] + b"0" * 64 + data[-3:],
    },
    step="manifest",
    words="SHA-256",
)
def the_tail_of_the_manifest_is(forge: Forge, cut: Edit) -> None:
    """The digest stands at one place in one form."""
    forge.manifest_bytes = cut(forge.sealed())


@case(step="manifest", words="unknown key 'sha256'")
def a_digest_among_the_fields(forge: Forge) -> None:
    """The tail's is the only one."""
    forge.manifest["sha256"] = "0" * 64


@each(
    {"the next": 2, "far away": 2**53 - 1}, error="NewerFormatError", step="manifest", words="upgrade m3build"
)
def a_newer_format_version(forge: Forge, number: int) -> None:
    """Refused by number before anything else is judged."""
    forge.manifest = {"format": "m3build-bank", "format_version": number}


@each(
    {
        "a string": ["encryption"],
        "a list": [[]],
        "a very long one": ["x" * 1_000_000],
        "many": [f"feature {number}" for number in range(100_000)],
        "terminal escapes": ["\x1b[2J"],
    },
    error="NewerFormatError",
    step="manifest",
    words="unknown features",
)
def an_unknown_feature(forge: Forge, features: list[object]) -> None:
    """Refused by name."""
    forge.manifest["features"] = features


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@case(error="", same=False)
def the_deepest_nesting_that_is_allowed(forge: Forge) -> None:
    """An open object may hold any JSON."""
    forge.manifest["sources"] = {"deep": _nested(30)}


@case(step="manifest", words="nested deeper than 32")
def nesting_one_too_deep(forge: Forge) -> None:
    """Depth counts from the manifest itself."""
    forge.manifest["sources"] = {"deep": _nested(31)}


@case(error="")
def a_string_of_16_MB(forge: Forge) -> None:
    """Large is not wrong."""
    forge.manifest["operation"] = "x" * (16 << 20)


@case(error="")
def a_hundred_thousand_small_lists(forge: Forge) -> None:
    """A parsed value takes some thirty times its text, and no more."""
    forge.manifest["sources"] = {"many": [[]] * 100_000}


@case(error="", commands=True)
def facts_of_odd_types_in_open_objects(forge: Forge) -> None:
    """What only people read may be any JSON; what prints it must bear that."""
    forge.manifest["model"].update(architecture=[1], dtype={}, device=None)
    forge.manifest["memory"]["selection"] = [[]]
    forge.manifest["codec"].update(nominal_bits="many", key_error=0.5, value_error=None, logit_error=[])
    forge.manifest["index"].update(recall="all", probes={})


add(
    "white space and unsorted keys",
    lambda forge: _raw(forge, json.dumps(forge.manifest, indent=1)[:-2].encode() + b"}"),
    error="",
    same=False,
)
