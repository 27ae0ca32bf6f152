"""The latents of a dictionary as a folder of static pages."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxinterp.saes import LatentDescriptions, Predicates


def latent_pages(
    descriptions: LatentDescriptions,
    folder: str | os.PathLike[str],
    *,
    texts: Sequence[str],
    predicates: Predicates | None = None,
    title: str = "Latents",
    notes: Sequence[str] = (),
    provenance: Mapping[str, object] | None = None,
    command: str | None = None,
) -> Path:
    """Writes a folder with a page for each latent and an index; the path of its index.html."""
    raise NotImplementedError
