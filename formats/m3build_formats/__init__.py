"""Reads and writes m3build banks (formats/SPEC.md says what the bytes mean).

Importing the package loads nothing: `bank.read_manifest` and `bank.list_versions` need the standard library
alone, and pyarrow, numpy and zstandard are imported by the modules that parse data files.
"""
