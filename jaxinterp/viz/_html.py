"""The frame of a page that needs nothing else: no network, no library, a few kilobytes of script of its own."""

import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from jaxinterp.store import atomic_file
from jaxinterp.viz._labels import visible

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_page(
    path: str | os.PathLike[str],
    *,
    heading: str,
    body: Sequence[str],
    data: object,
    styles: Sequence[str],
    scripts: Sequence[str],
    beside: Sequence[str] = (),
) -> Path:
    """Writes one HTML file, whole or not at all.

    Args:
        path: the file.
        heading: of the window.
        body: pieces of HTML; empty ones are left out.
        data: for the script, as JSON.
        styles, scripts: files beside this one.
        beside: scripts beside the page, which are loaded before its own.
    """
    css, code = ("".join(_asset(name) for name in names) for names in (styles, scripts))
    policy = _POLICY.replace("script-src", "script-src 'self' file:") if beside else _POLICY
    loaded = "".join(f'<script src="{escape(name)}"></script>\n' for name in beside)
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(heading)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f'\n</main>\n<script type="application/json" id="data">{json_text(data)}</script>\n{loaded}'
        f"<script>\n{code}</script>\n</body>\n</html>\n"
    )
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def _asset(name: str) -> str:
    return importlib.resources.files("jaxinterp.viz").joinpath(name).read_text(encoding="utf-8")


def json_text(data: object) -> str:
    """JSON that can stand in a script, and in its element: ASCII, and nothing in it can close the element."""
    written = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number_or_none(value: float) -> float | None:
    """Five significant digits, as JSON has them."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def provenance_html(facts: Mapping[str, object], command: str | None) -> str:
    """Where the numbers come from, and the command that makes them again."""
    shown = {str(key): item for key, item in facts.items() if item is not None and key != "command"}
    command = command or (str(facts["command"]) if facts.get("command") else None)
    if not shown and not command:
        return ""
    rows = "".join(
        f"<dt>{escape(_fact_name(key))}</dt><dd>{escape(_fact(key, item))}</dd>" for key, item in shown.items()
    )
    again = (
        f"<p class='small soft' style='margin-top:14px'>To make it again:</p><pre>{escape(command)}</pre>"
        if command
        else ""
    )
    return f'<section><h2>Where this comes from</h2><dl class="facts">{rows}</dl>{again}</section>'


def _fact_name(key: str) -> str:
    return "BOS prepended" if key == "prepend_bos" else key.replace("_", " ")


def _fact(key: str, item: object) -> str:
    if key == "prepend_bos" or isinstance(item, bool | np.bool_):
        return "yes" if item else "no"
    if isinstance(item, np.ndarray):
        return ", ".join(map(str, item.tolist()))
    return visible(str(item)) if key in ("correct", "wrong") else str(item)
