"""What a store of results says of itself, and how that differs from what is asked for."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.store._atomic import atomic_file

FORMAT = "jaxinterp results 1"
MANIFEST = "manifest.json"
LEFTOVER = re.compile(r"\..*\.[0-9a-f]{8}\.partial(\.\w+)?")
"""Names that atomic_file leaves when the process is killed inside."""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What the store at `path` says of itself; None where there is nothing yet."""
    if not path.exists():
        return None
    if not path.is_dir():
        raise InputError(f"{path} is a file; results are kept in a folder. Give another path.")
    if not (path / MANIFEST).exists():
        others = sorted(p.name for p in path.iterdir() if not LEFTOVER.fullmatch(p.name))
        if others:
            raise InputError(
                f"{path} is not empty and holds no results of a sweep (it has {', '.join(others[:5])}). Choose another folder, "
                "or an empty one; nothing was changed."
            )
        return None
    try:
        stored = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        stored = None
    parts = {"format": str, "facts": dict, "arrays": dict, "chunks": int}
    if not isinstance(stored, dict) or any(not isinstance(stored.get(k), kind) for k, kind in parts.items()):
        raise InputError(
            f"{path / MANIFEST} cannot be read, so it is not known what was computed there; nothing was changed. Choose another "
            "folder, or delete this one to start again."
        )
    return stored


def make_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Makes the folder a store, by one rename."""
    path.mkdir(parents=True, exist_ok=True)
    with atomic_file(path / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def describe(arrays: Mapping[str, tuple[Sequence[int], Any]]) -> dict[str, list[Any]]:
    """Shapes and dtypes as the manifest has them."""
    described = {}
    for name, (shape, dtype) in arrays.items():
        kind = np.dtype(dtype)
        if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII) or kind.kind not in "biufc" or not len(shape):
            raise InputError(
                f"array {name!r} of {kind}{list(shape)}: names are letters, digits, '_', '-' and '.', dtypes NumPy's own "
                "numbers, and there is at least the axis of rows."
            )
        described[name] = [[int(n) for n in shape], kind.newbyteorder("<").str]
    if len({shape[0] for shape, _ in described.values()}) != 1:
        raise InputError(f"arrays={dict(arrays)}: give at least one array; all need the same number of rows (axis 0).")
    return described


def as_json(value: Any) -> Any:
    """The value as it comes back from JSON: tuples are lists, numbers of NumPy are Python's."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic)):
            return leaf.tolist()
        raise InputError(
            f"facts hold {leaf!r} ({type(leaf).__name__}); they are kept as JSON: numbers, texts, lists, mappings."
        )

    return json.loads(json.dumps(value, default=plain))


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Lines that say where two manifests differ, the innermost places only."""
    found: list[tuple[str, Any, Any]] = []
    _compare("", stored["facts"], given["facts"], found)
    for part in ("arrays", "chunks", "format"):
        _compare(part, stored[part], given[part], found)
    lines = []
    for name, a, b in found:
        texts = ["nothing" if x is _NOTHING else json.dumps(x, ensure_ascii=False) for x in (a, b)]
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))))
        shown = [_short(text, same, x) for text, x in zip(texts, (a, b), strict=True)]
        lines.append(f"{name}: stored {shown[0]}, given {shown[1]}")
    return lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])


_NOTHING = object()


def _compare(name: str, stored: Any, given: Any, found: list[tuple[str, Any, Any]]) -> None:
    if stored is not _NOTHING and given is not _NOTHING and _text(stored) == _text(given):
        return
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in [*stored, *(k for k in given if k not in stored)]:
            inner = f"{name}.{key}" if name else key
            _compare(inner, stored.get(key, _NOTHING), given.get(key, _NOTHING), found)
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given) > 4:
        for i, (a, b) in enumerate(zip(stored, given, strict=True)):
            _compare(f"{name}[{i}]", a, b, found)
    else:
        found.append((name, stored, given))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # as text NaN is equal to itself


def _short(text: str, same: int, value: Any) -> str:
    """The text around its character number `same`, where the two begin to differ, and how many values it has in all."""
    start = max(same - 20, 0) if len(text) > 100 else 0
    count = f" ({len(value)} values)" if isinstance(value, (list, dict)) else ""
    return text if len(text) <= 100 else "..." * (start > 0) + text[start : start + 60] + "..." + count
