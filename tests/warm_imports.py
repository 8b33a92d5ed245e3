"""Imports what a build imports, for processes that are forked from one that has."""

import importlib

for name in (
    "torch",
    "faiss",
    "pyarrow.ipc",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.masking_utils",
    "sklearn.random_projection",
    "m3build_cli.compile_command",
    "m3build_cli.compile_text",
    "m3build.pipeline",
    "m3build.capture",
    "m3build.embed.lexical",
    "m3build.index",
    "m3build.corpus.registry",
):
    try:
        importlib.import_module(name)
    except ImportError:
        continue
