"""The order of codes in a row and the numbering of codebooks."""

from __future__ import annotations

import pytest

from m3build.codec.rows import SCOPES, codebook_count, codebook_numbers, vector_places

HEADS = ((1, 0), (1, 3), (4, 2))


def test_a_row_goes_by_layer_then_kind_then_head_then_slot():
    places = vector_places(HEADS, 2)
    # layer 1: keys of heads 0 and 3, values of heads 0 and 3; layer 4: keys, values
    assert places[0].tolist() == [[0, 1], [2, 3], [8, 9]]
    assert places[1].tolist() == [[4, 5], [6, 7], [10, 11]]


@pytest.mark.parametrize(
    ("scope", "keys", "values"),
    [
        ("all", [0, 0, 0], [0, 0, 0]),
        ("kind", [0, 0, 0], [1, 1, 1]),
        ("layer", [0, 0, 2], [1, 1, 3]),
        ("head", [0, 2, 4], [1, 3, 5]),
    ],
)
def test_a_scope_says_which_vectors_share_a_codebook(scope, keys, values):
    assert codebook_numbers(scope, HEADS).tolist() == [keys, values]
    assert codebook_count(scope, HEADS) == max(keys + values) + 1
    assert scope in SCOPES
