"""Errors measured against a slow transcription of their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from m3build.codec.encoder import TorchEncoder
from m3build.codec.errors import measure_errors

SCALING = [0.25, 0.3]


@pytest.fixture
def measured(trained, memories):
    def measure(text, softcap=None, **change):
        codec = trained(text)
        keys, values, positions = memories(12, 16, seed=9)
        queries = np.random.default_rng(3).standard_normal((12, 3, 2, 3, 16)).astype(np.float32)
        given = {"keys": keys, "values": values, "positions": positions, "queries": queries, **change}
        codes = TorchEncoder(codec, "cpu").encode(
            *(torch.from_numpy(given[name]) for name in ("keys", "values", "positions"))
        )
        found = measure_errors(
            codec,
            codes.numpy(),
            given["keys"],
            given["values"],
            given["positions"],
            given["queries"],
            SCALING,
            softcap,
        )
        return codec, codes.numpy(), given, found

    return measure


@pytest.mark.parametrize("softcap", [None, [2.0, None]])
def test_the_four_errors_are_as_defined(measured, softcap):
    codec, codes, given, found = measured("PQ4x5", softcap)
    decoded = codec.decode_rows(codes, given["positions"])
    used = given["positions"] != 255
    sums = {}
    for head, (layer, _) in enumerate(codec.heads):
        rank = [0, 2].index(layer)
        cap = softcap[rank] if softcap else None

        def add(name, error, reference, layer=layer):
            for where in (layer, "all"):
                total = sums.setdefault((name, where), np.zeros(2))
                total += error, reference

        for name, exact, got in (
            ("key_error", given["keys"], decoded[0]),
            ("value_error", given["values"], decoded[1]),
        ):
            a, b = exact[:, head][used[:, head]].astype(float), got[:, head][used[:, head]].astype(float)
            add(name, ((a - b) ** 2).sum(), ((a - a.mean(0)) ** 2).sum())
        for r in range(12):
            slots = used[r, head]
            if not slots.any():
                continue
            for query in given["queries"][r, :, :, head].reshape(-1, 16).astype(float):
                logits, outputs = [], []
                for k, v in ((given["keys"], given["values"]), decoded):
                    logit = k[r, head][slots].astype(float) @ query * SCALING[rank]
                    logit = np.tanh(logit / cap) * cap if cap else logit
                    weights = np.exp(logit) / np.exp(logit).sum()
                    logits.append(logit - logit.mean())
                    outputs.append(weights @ v[r, head][slots].astype(float))
                add("logit_error", ((logits[0] - logits[1]) ** 2).sum(), (logits[0] ** 2).sum())
                add("output_error", ((outputs[0] - outputs[1]) ** 2).sum(), (outputs[0] ** 2).sum())
    for (name, where), (error, reference) in sums.items():
        of = found if where == "all" else found["errors_by_layer"][[0, 2].index(where)]
        assert of[name] == pytest.approx(error / reference, rel=1e-4)
    assert [entry["layer"] for entry in found["errors_by_layer"]] == [0, 2]
    assert [(entry["layer"], entry["head"]) for entry in found["errors_by_head"]] == list(codec.heads)


def test_better_codecs_have_smaller_errors(measured):
    errors = [measured(text)[3] for text in ("PQ4x2", "PQ4x5", "SQ4", "SQ8", "none")]
    for name in ("key_error", "value_error", "logit_error", "output_error"):
        figures = [found[name] for found in errors]
        assert figures[:4] == sorted(figures[:4], reverse=True)
        assert 0 <= figures[4] < 1e-4


def test_errors_are_json_and_none_where_there_is_nothing_to_measure(measured):
    nothing = np.zeros((0, 3, 4, 16), np.float32)
    empty = {"keys": nothing, "values": nothing, "positions": np.zeros((0, 3, 4), np.uint8)}
    _, _, _, found = measured("SQ8", **empty, queries=np.zeros((0, 1, 2, 3, 16), np.float32))
    assert found["key_error"] is None
    assert found["logit_error"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_all_zero_queries_are_left_out(measured):
    _, _, given, with_all = measured("PQ4x5")
    more = np.concatenate([given["queries"], np.zeros_like(given["queries"])], axis=1)
    assert measured("PQ4x5", queries=more)[3]["output_error"] == pytest.approx(with_all["output_error"])
