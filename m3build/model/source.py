"""Where a model comes from: the package itself, a transformers directory, or a hub id that is brought into
the local hub cache first.

After this step a model is a directory, whatever it was before. Only configuration, tokenizer and safetensors
files are fetched, and pickled weights are refused: unpickling runs code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from m3build_formats.errors import ResourceError, UsageError

DEFAULT_MODEL = "m3-mini"
SHIPPED = Path(__file__).parent.parent / "shipped"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_FETCHED = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model directory and the name that a bank records for it: the directory's own base name or the hub id,
    never a path."""

    directory: Path
    name: str


def find_model(name: str, *, trust_remote_code: bool = False, weights: bool = True) -> ModelSource:
    """The directory of a model that is named by a path or a hub id; ``m3-mini`` is the one that comes with
    m3build, whatever else has that name (``./m3-mini`` is a directory).

    Raises UsageError if there is no such directory or hub model, or if it holds no safetensors weights
    (unless ``weights`` is false, since a config is enough to plan); ResourceError if the hub cannot be
    reached and the model is not in the local cache.
    """
    path = Path(name).expanduser()
    if name == DEFAULT_MODEL:
        source = ModelSource(SHIPPED / DEFAULT_MODEL, DEFAULT_MODEL)
    elif path.is_dir():
        source = ModelSource(path, path.resolve().name)
    elif path.exists():
        raise UsageError(f"{name} is a file; --model takes a transformers directory or a hub id.")
    elif _HUB_ID.fullmatch(name):
        source = ModelSource(_fetch(name, trust_remote_code), name)
    else:
        raise UsageError(f"no such directory: {name}; --model takes a transformers directory or a hub id.")
    _check_files(source, weights)
    return source


def weight_files(directory: Path) -> list[Path]:
    """Safetensors files of a model directory, by name."""
    return sorted(directory.glob("*.safetensors"), key=lambda path: path.name)


def _check_files(source: ModelSource, weights: bool) -> None:
    if not (source.directory / "config.json").is_file():
        raise UsageError(f"{source.name} holds no config.json; it is not a transformers model directory.")
    if not weights or weight_files(source.directory):
        return
    if any(source.directory.glob("*.bin")) or any(source.directory.glob("*.pt")):
        raise UsageError(
            f"{source.name} holds pickled weights only; m3build reads safetensors alone,"
            " since unpickling runs code. Convert it with save_pretrained()."
        )
    raise UsageError(f"{source.name} holds no safetensors weights.")


def _fetch(name: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns: list[str] = [*_FETCHED, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UsageError(
            f"the hub model {name} asks for an agreement first; accept it there and log in."
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"there is neither a directory nor a hub model named {name}.") from error
    except LocalEntryNotFoundError as error:
        raise ResourceError(
            f"there is no directory {name}, and the hub cannot be reached to look for a model of that name;"
            " check the path or the network."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(f"the hub model {name} could not be fetched: {first}") from error
