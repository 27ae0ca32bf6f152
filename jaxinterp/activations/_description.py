"""Whether a state or a folder is of the stream at hand, and if not, where they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxinterp.store import StoreMismatchError


def as_text(description: Mapping[str, Any]) -> str:
    """A description as it is kept in a state."""
    return json.dumps(description, sort_keys=True)


def named(source: Mapping[str, Any]) -> str:
    """What a person calls a source of documents, from its description.

    Example:
        >>> named({"kind": "text", "name": "a.txt", "documents": 1}), named({"kind": "texts", "documents": 2})
        ('a.txt (1 document)', 'the list of 2 texts')
    """
    count, kind = source["documents"], "text" if source["kind"] == "texts" else "document"
    many = f"{count} {kind}" + ("" if count == 1 else "s")
    return (
        f"{source['name']} ({many})" if "name" in source else f"the {'list' if kind == 'text' else 'array'} of {many}"
    )


def differences(kept: Any, own: Any) -> str:
    """Where two descriptions differ, as JSON has them; empty where they do not.

    Example:
        >>> differences({"a": {"b": 1}, "c": (2,)}, {"a": {"b": 3}, "c": [2]})
        'a.b was 1, is 3'
    """
    lines = list(_compare("", *(json.loads(json.dumps(x)) for x in (kept, own))))
    return "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")


def check_state(state: Mapping[str, Any], own: Mapping[str, Any], passes: int) -> bool:
    """Raises unless a state is of the stream at hand; whether that has as many epochs as the state's.

    It may have others, its own or those of its tokens, if no fewer than the `passes` that the state has begun.
    """
    kept = json.loads(state["description"])
    there, here = kept.get("tokens", kept), own.get("tokens", own)
    before, now = there.get("epochs"), here.get("epochs")
    if "epochs" in there and "epochs" in here and (now is None or now >= passes):
        there["epochs"] = now
    if other := differences(kept, own):
        epochs = (
            f"; only epochs may be others, None or from the {passes} on that were begun" if "epochs" in here else ""
        )
        raise StoreMismatchError(
            f"the state is of another stream: {other}. Make the stream as it was made then{epochs}."
        )
    return before == now


def _compare(name: str, kept: Any, own: Any) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(own, dict):
        for key in [*kept, *(key for key in own if key not in kept)]:
            yield from _compare(f"{name}.{key}" if name else key, kept.get(key), own.get(key))
    elif kept != own:
        yield f"{name} was {json.dumps(kept):.60}, is {json.dumps(own):.60}"
