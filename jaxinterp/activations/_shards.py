"""A folder of activation shards: .npy files, and a manifest that says what they are."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import MissingFileError, WeightsError
from jaxinterp.store import atomic_file

FORMAT = "jaxinterp activations 1"
MANIFEST = "manifest.json"
DOCUMENTS = "documents"
ENDS = 1 << 16  # bytes at either end of an array that its checksum is of, so that opening a store of any size is quick


def file_name(shard: int, site: str) -> str:
    """Of one site's rows, or of their documents."""
    return f"{shard:06}.{site}.npy"


def write_array(folder: Path, shard: int, site: str, array: np.ndarray) -> int:
    """Writes an array under its name, whole or not at all; bfloat16 as uint16. Its checksum."""
    kept = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    with atomic_file(folder / file_name(shard, site)) as temporary:
        np.save(temporary, kept, allow_pickle=False)
    return checksum(kept)


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's first and last bytes."""
    flat = array.reshape(-1)
    count = max(1, ENDS // flat.itemsize)
    return zlib.crc32(flat[-count:].tobytes(), zlib.crc32(flat[:count].tobytes()))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """By one rename."""
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the folder says of itself."""
    file = folder / MANIFEST
    if not file.is_file():
        raise MissingFileError(
            f"{folder} holds no activations: it has no {MANIFEST}. Was it written by write_activations?"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        _check(manifest)
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} cannot be read ({error}). Copy the folder again, or write it again.") from error
    return manifest


def _check(manifest: dict[str, Any]) -> None:
    """Raises ValueError unless a manifest has what is read of it."""
    parts = [("it", manifest, {"format", "widths", "dtype", "rows", "shards", "stream", "provenance", "complete"})]
    parts += [(f"shard {i}", shard, {"rows", "crc32"}) for i, shard in enumerate(manifest.get("shards", []))]
    parts += [
        (f"crc32 of shard {i}", shard.get("crc32", {}), {*manifest.get("widths", {}), DOCUMENTS})
        for i, shard in enumerate(manifest.get("shards", []))
    ]
    lacks = [
        f"{name} has no {', '.join(sorted(wanted - set(part)))}" for name, part, wanted in parts if wanted - set(part)
    ]
    if lacks:
        raise ValueError("; ".join(lacks[:5]))
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, and {FORMAT!r} is read")
    held = sum(shard["rows"] for shard in manifest["shards"])
    if manifest["rows"] != held:
        raise ValueError(f"its rows are {manifest['rows']}, and its shards have {held}")
    if manifest["complete"] and not held:
        raise ValueError("it names no shard with rows")


def open_shards(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """For each shard the rows of each site and their documents, mapped from the disk; every file is looked at, all faults told.

    Raises:
        WeightsError: files that are missing, truncated, or of another run.
    """
    kinds = {site: (width, "uint16" if manifest["dtype"] == "bfloat16" else manifest["dtype"])
             for site, width in manifest["widths"].items()}  # fmt: skip
    shards, faults = [], []
    for number, shard in enumerate(manifest["shards"]):
        arrays = {}
        for site, crc32 in shard["crc32"].items():
            width, dtype = kinds.get(site, (None, "int32"))
            shape = (shard["rows"],) if width is None else (shard["rows"], width)
            file = folder / file_name(number, site)
            try:
                arrays[site] = array = np.load(file, mmap_mode="r", allow_pickle=False)
                if (array.shape, str(array.dtype)) != (shape, dtype):
                    faults.append(f"{file.name} holds {array.dtype}{list(array.shape)}, not {dtype}{list(shape)}")
                elif checksum(array) != crc32:
                    faults.append(f"{file.name} is of another run, or was changed")
            except FileNotFoundError:
                faults.append(f"{file.name} is missing")
            except (ValueError, OSError, EOFError) as error:
                faults.append(f"{file.name} is truncated or no .npy file ({str(error).splitlines()[0]})")
        shards.append(arrays)
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise WeightsError(
            f"The activations in {folder} are not as {MANIFEST} says: {'; '.join(faults[:10])}{more}. Copy these files again, or "
            "write the folder again."
        )
    return shards
