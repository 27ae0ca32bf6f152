"""All attention patterns of a prompt as one HTML page."""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.viz._html import provenance_html, write_page
from jaxinterp.viz._labels import visible

_MOST_TOKENS = 128
_MOST_VALUES = 4_000_000  # two bytes each, and a third more as text: 11 MB
_WHOLE = 65_534  # what stands for probability 1
_UNDEFINED = 65_535


def attention_page(
    patterns: Any,
    tokens: Sequence[str],
    path: str | os.PathLike[str],
    *,
    example: int = 0,
    layers: Sequence[int] | None = None,
    title: str = "Attention patterns",
    notes: Sequence[str] = (),
    provenance: Mapping[str, object] | None = None,
) -> Path:
    """Writes the attention patterns of one prompt as one HTML file, to be opened in any browser, online or not.

    All heads are small squares in a grid of layers and heads; the chosen one is large. Pointing at a token shows what it
    looks at and who looks at it. Arrow keys do the same. `path#L3.H2` opens with that head, `path#L3.H2@5` with token 5 too.
    Probabilities are kept to 1 in 65534. It follows the reader's light or dark setting.

    Args:
        patterns: probabilities [L, H, T, T] (queries, then keys), or [L, B, H, T, T] as a capture of "attn.pattern" has them.
        tokens: the T tokens as text, at most 128.
        path: the file to write (whole or not at all).
        example: which of the batch, where there is one.
        layers: numbers of the layers, where not all were kept (default: 0, 1, ...).
        title: heading.
        notes: paragraphs of text above the patterns.
        provenance: where they come from: model, revision, ...

    Returns:
        The path.

    Raises:
        InputError: shapes that do not fit, values that are no probabilities, or more than a page can hold.
        SaveError: the file could not be written.

    Example:
        >>> import numpy as np, tempfile
        >>> patterns = np.tril(np.ones((2, 3, 4, 4))) / np.arange(1, 5)[:, None]  # 2 layers, 3 heads: look at all before
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = attention_page(patterns, ["Once", " upon", " a", " time"], folder + "/attention.html")
        ...     path.stat().st_size < 100_000
        True
    """
    chosen = _checked(patterns, list(tokens), example, layers)
    n_layers, n_heads = chosen.shape[:2]
    names = [str(layer) for layer in (range(n_layers) if layers is None else layers)]
    causal = not np.triu(np.nan_to_num(chosen), 1).any()
    heading = f"{n_layers} layer{'' if n_layers == 1 else 's'} of {n_heads} heads, {len(tokens)} tokens"
    body = [
        f"<header><h1>{escape(title)}</h1><p class='soft'>{heading}</p></header>",
        *(f'<p class="lede">{escape(note)}</p>' for note in notes),
        _PANES,
        provenance_html(dict(provenance or {}), None),
    ]
    data = {
        "tokens": [visible(token) for token in tokens],
        "layers": names,
        "heads": n_heads,
        "causal": bool(causal),
        "whole": _WHOLE,
        "patterns": _packed(chosen, causal),
    }
    styles = ["page.css", "attention.css"]
    return write_page(path, heading=title, body=body, data=data, styles=styles, scripts=["attention.js"])


_PANES = """<noscript><p>The patterns are drawn by a script in this file; allow it to run.</p></noscript>
<div class="viewer">
<section aria-label="all heads"><h2>All heads</h2>
<p class="small soft">Rows are layers, columns heads. Choose one by pointer or arrow keys.</p>
<div class="scroll"><div id="grid" class="grid-of-heads" role="group" aria-label="heads"></div></div></section>
<section aria-label="one head"><h2 id="name"></h2>
<p class="small soft">Rows are queries (who looks), columns keys (what is looked at).</p>
<div class="scroll"><canvas id="large" tabindex="0" role="img" aria-labelledby="name" aria-describedby="said"></canvas></div>
<div class="ramp small soft"><span>0</span><i></i><span>1</span> probability</div>
<div id="said" class="said" aria-live="polite"></div>
<div class="strips">
<div><h3 id="looks-title">looks at</h3>
<div id="looks" class="tokens mono" tabindex="0" role="group" aria-labelledby="looks-title"></div></div>
<div><h3 id="looked-title">is looked at by</h3>
<div id="looked" class="tokens mono" role="group" aria-labelledby="looked-title"></div></div>
</div></section>
</div>"""


def _checked(patterns: Any, tokens: list[str], example: int, layers: Sequence[int] | None) -> np.ndarray:
    """[L, H, T, T], or an error that says what does not fit."""
    array = np.asarray(patterns)
    if array.ndim not in (4, 5):
        raise InputError(
            f"patterns have shape {array.shape}; give [L, H, T, T], or [L, B, H, T, T] as capture('attn.pattern') has "
            "them. For a few heads use viz.attention."
        )
    if array.ndim == 5:
        if not 0 <= example < array.shape[1]:
            raise InputError(
                f"example={example}: the patterns hold {array.shape[1]} examples, 0 to {array.shape[1] - 1}."
            )
        array = array[:, example]
    elif example != 0:
        raise InputError(f"example={example}, but patterns of shape {array.shape} have no batch axis: leave it out.")
    array = array.astype(np.float64)
    n = len(tokens)
    if not array.size or array.shape[2:] != (n, n):
        raise InputError(
            f"patterns have shape {array.shape}, but there are {n} tokens: they need [L, H, {n}, {n}]. Cut padding off both: "
            "patterns[..., :n, :n] and tokens[:n]."
        )
    if layers is not None and len(layers) != len(array):
        raise InputError(f"{len(layers)} numbers of layers for patterns of {len(array)} layers.")
    if n > _MOST_TOKENS:
        raise InputError(
            f"{n} tokens; a page holds at most {_MOST_TOKENS}. Choose a stretch of the prompt: "
            f"patterns[..., a:b, a:b] and tokens[a:b], with b - a at most {_MOST_TOKENS}."
        )
    if array.size > _MOST_VALUES:
        raise InputError(
            f"{array.size:,} probabilities; a page holds at most {_MOST_VALUES:,}. Choose some of the {len(array)} layers, "
            "patterns[a:b] with layers=range(a, b), or fewer tokens."
        )
    if np.isfinite(array).any() and (np.nanmin(array) < -1e-4 or np.nanmax(array) > 1 + 1e-4):
        raise InputError(
            f"patterns reach from {np.nanmin(array):.3g} to {np.nanmax(array):.3g}; probabilities lie in 0..1. "
            "Capture 'attn.pattern', not 'attn.scores'."
        )
    return array


def _packed(patterns: np.ndarray, causal: bool) -> str:
    """Two bytes for each probability, little-endian, as base64; of causal patterns only the lower triangle, row by row."""
    n = patterns.shape[-1]
    whole = np.where(np.isfinite(patterns), np.rint(np.clip(np.nan_to_num(patterns), 0, 1) * _WHOLE), _UNDEFINED)
    kept = whole[..., *np.tril_indices(n)] if causal else whole
    return base64.b64encode(np.ascontiguousarray(kept, dtype="<u2").tobytes()).decode("ascii")
