"""A model's identity: one hash over all that shapes the keys and values it writes, and nothing else.

* ``config.json``, as canonical JSON (sorted keys) without the keys that shape no key or value: names, library
  versions, the number type the weights are meant to be loaded in (the weights have their own; the one used is
  recorded apart), generation and training settings.
* The bytes of the safetensors files, in the order of their names. Their names do not count, how tensors are
  spread over them does.
* The tokenizer: ``tokenizer.json`` where there is one, else the vocabulary files it would be made from; with
  the settings that change ids.

The path, modification times and ``memory3.json`` (recorded in full elsewhere) take no part. (Computed anew
each time: hashing runs at the speed of the drive, and a cache would be one more thing that can be wrong.)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from m3build.model.source import weight_files
from m3build_formats.errors import ResourceError, UsageError

_CONFIG_LEFT_OUT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "hidden_dropout_prob",
        "initializer_range",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "resid_pdrop",
        "return_dict",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_TOKENIZER_LEFT_OUT = frozenset(
    {
        "backend",
        "chat_template",
        "is_local",
        "local_files_only",
        "model_max_length",
        "name_or_path",
        "padding_side",
        "processor_class",
        "special_tokens_map_file",
        "tokenizer_file",
        "truncation_side",
    }
)
_VOCABULARIES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")
_BLOCK = 1 << 20


def fingerprint(directory: Path) -> str:
    """Hex SHA-256 of a model directory, independent of where it lies.

    Raises UsageError if its JSON files cannot be read, ResourceError if a file cannot.
    """
    parts: dict[str, str] = {"config": _json_digest(directory / "config.json", _CONFIG_LEFT_OUT)}
    parts["weights"] = _files_digest(weight_files(directory))
    fast = directory / "tokenizer.json"
    vocabulary = [fast] if fast.is_file() else [directory / name for name in _VOCABULARIES]
    parts["vocabulary"] = _files_digest([path for path in vocabulary if path.is_file()])
    settings = directory / "tokenizer_config.json"
    parts["tokenizer"] = _json_digest(settings, _TOKENIZER_LEFT_OUT) if settings.is_file() else ""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _json_digest(path: Path, left_out: frozenset[str]) -> str:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} cannot be read as JSON: {error}.") from error
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key not in left_out}
    return hashlib.sha256(json.dumps(found, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _files_digest(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    for path in paths:
        one = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    one.update(memoryview(buffer)[:count])
        except OSError as error:
            raise ResourceError(f"{path.name} cannot be read: {error}.") from error
        whole.update(one.digest())
    return whole.hexdigest()
