"""Whether a state or a folder is of the stream at hand, and if not, where they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def as_text(description: Mapping[str, Any]) -> str:
    """A description as it is kept in a state."""
    return json.dumps(description, sort_keys=True)


def differences(kept: Any, own: Any) -> str:
    """Where two descriptions differ, as JSON has them; empty where they do not.

    Example:
        >>> differences({"a": {"b": 1}, "c": (2,)}, {"a": {"b": 3}, "c": [2]})
        'a.b was 1, is 3'
    """
    lines = list(_compare("", *(json.loads(json.dumps(x)) for x in (kept, own))))
    return "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")


def _compare(name: str, kept: Any, own: Any) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(own, dict):
        for key in [*kept, *(key for key in own if key not in kept)]:
            yield from _compare(f"{name}.{key}" if name else key, kept.get(key), own.get(key))
    elif kept != own:
        yield f"{name} was {json.dumps(kept):.60}, is {json.dumps(own):.60}"
