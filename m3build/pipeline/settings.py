"""Settings in the shapes that the stages take them in."""

from __future__ import annotations

from m3build.config import Settings
from m3build.corpus import SourceOptions
from m3build.model import ShapeRequest


def source_options(settings: Settings) -> SourceOptions:
    """How sources are read."""
    return SourceOptions(
        text_field=settings.text_field,
        id_field=settings.id_field,
        title_field=settings.title_field,
        keep_fields=settings.keep_fields,
        encoding=settings.encoding,
        encoding_errors="strict" if settings.encoding_errors == "strict" else "replace",
        max_document_bytes=settings.max_document_bytes,
        exclude=settings.exclude,
    )


def shape_request(settings: Settings) -> ShapeRequest:
    """Where memory is asked to sit."""
    return ShapeRequest(
        memory_layers=settings.memory_layers,
        memory_heads=settings.memory_heads,
        sparse_tokens=settings.sparse_tokens,
        reference_tokens=settings.reference_tokens,
        reference_bos=settings.reference_bos,
        selection=settings.select,
    )
