"""The build: sources → pieces → shards → codec → memories, embeddings, index → a version. One stage a module,
in that order.
"""

from m3build.pipeline.build import compile_bank
from m3build.pipeline.result import CompileResult

__all__ = ["CompileResult", "compile_bank"]
