"""The build: sources → pieces → shards → codec → memories, embeddings, index → a version. One stage a module,
in that order; ``build`` runs them.

Nothing is imported here, so that a worker process loads only what its own stage needs: no torch, that is.
"""
