"""Teach a language model to read explicit memories: the paper's two stages, for any decoder-only model."""
