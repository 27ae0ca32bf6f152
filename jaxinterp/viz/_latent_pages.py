"""The latents of a dictionary as a folder of static pages: an index, and one page that shows any of them."""

import ast
import collections
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import InputError, SaveError
from jaxinterp.saes import LatentDescriptions, Predicates
from jaxinterp.store import atomic_folder
from jaxinterp.viz._html import json_text, number_or_none, provenance_html, write_page
from jaxinterp.viz._labels import printable

CHUNK = 64
"""Latents in a file of data."""

_TOKENS = 5
_MARK = "/* jaxinterp: latents of a dictionary */ "
_PAGES = ("index.html", "latent.html")
_SET = re.compile(r"(token|previous token) is one of (.+)", re.DOTALL)  # a label of `saes.predicates`
_BYTES = re.compile(r"(<0x[0-9A-F]{2}>|<U\+00[0-9A-F]{2}>)+")


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
    """Writes a folder of static pages on the latents of a dictionary, to be opened in any browser, online or not.

    index.html lists all latents, to be searched by number, token or label and sorted by each column; latent.html#123 shows one:
    its contexts with the activation at each token, histogram, the tokens that it promotes and suppresses, and the latents that
    are near it or active together with it, as links. Arrow keys go from one to the next. The folder can be moved, zipped, or put
    on any web server; the pages follow the reader's light or dark setting.

    Args:
        descriptions: what `saes.describe_latents` returns.
        folder: made whole or not at all; earlier pages of this kind there are replaced.
        texts: the text of each token, such as `lm.tokenizer.str_tokens(range(lm.tokenizer.d_vocab))`.
        predicates: labels of the latents with their F1, as `saes.predicates` gives them.
        title: heading.
        notes: paragraphs of text above the index.
        provenance: where the latents come from: dictionary, model, text, ...
        command: the command that makes the pages again.

    Returns:
        The path of index.html.

    Raises:
        InputError: fewer texts than tokens, predicates of another number of latents.
        SaveError: the folder holds something else, or could not be written.

    Example:
        >>> import jax, tempfile, jaxinterp as ji
        >>> from jaxinterp import saes
        >>> lm = ji.zoo.load("stories")
        >>> config = saes.SAEConfig(architecture=saes.TopK(k=4), d_in=lm.config.d_model, n_latents=64, site="resid_post.1")
        >>> rows = jax.random.normal(jax.random.key(0), (64, lm.config.d_model))
        >>> sae = saes.random_dictionary(config, jax.random.key(1), rows)
        >>> tokens = lm.encode("Once upon a time there was a little dog.")
        >>> found = saes.describe_latents(sae, lm.model, lm.params, [tokens], exclude_positions=[0])
        >>> texts = lm.tokenizer.str_tokens(range(lm.config.d_vocab))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = latent_pages(found, folder + "/latents", texts=texts)
        ...     sorted(path.name for path in index.parent.iterdir())
        ['data', 'index.html', 'latent.html']
    """
    n = len(descriptions.firing_rate)
    if predicates is not None and len(predicates.texts) != n:
        raise InputError(f"{len(predicates.texts)} predicates for {n} latents: they are of another dictionary.")
    used = _used_tokens(descriptions)
    if len(used) and used[-1] >= len(texts):
        raise InputError(
            f"{len(texts)} texts, but there is a token {used[-1]}. Give the text of each token of the tokenizer."
        )
    _check_is_ours(Path(folder))
    with atomic_folder(folder, replace=True) as partial:
        data = partial / "data"
        data.mkdir()
        for first, chunk in _chunks(descriptions, used):
            text = f"{_MARK}addLatents({first // CHUNK}, {json_text(chunk)});\n"
            (data / _chunk_name(first // CHUNK)).write_text(text, encoding="ascii")
        index = _index(descriptions, used, texts, predicates, title)
        index["where"] = _where(title, descriptions.site, (provenance or {}).get("model"))
        (data / "index.js").write_text(f"{_MARK}const latents = {json_text(index)};\n", encoding="ascii")
        facts = {"site": descriptions.site or None, "tokens": f"{int(descriptions.rows):,}"} | dict(provenance or {})
        head = f"<header><h1>{escape(title)}</h1><p class='soft' id='about'></p></header>"
        ledes = [f'<p class="lede">{escape(note)}</p>' for note in notes]
        source = f"<details class='source'><summary>Where this comes from</summary>{provenance_html(facts, command)}</details>"
        listed = [head, *ledes, source, _LIST]
        for name, body, script in (("latent", [_LATENT], "latents_one.js"), ("index", listed, "latents_index.js")):
            write_page(
                partial / f"{name}.html", heading=title, body=body, data={}, styles=["page.css", "latents.css"],
                scripts=["latents.js", script], beside=["data/index.js"],
            )  # fmt: skip
    return Path(folder) / "index.html"


_NO_SCRIPT = "<noscript><p>The pages are drawn by scripts in this folder; allow them to run.</p></noscript>"
_LIST = f"""{_NO_SCRIPT}
<div id="density"></div>
<div class="tools"><input id="search" type="search" placeholder="number, token or label" aria-label="search" autocomplete="off">
<label class="small soft"><input id="dead" type="checkbox"> also those that are never active</label>
<span id="count" class="small soft" aria-live="polite"></span></div>
<table id="list"><thead><tr></tr></thead><tbody></tbody></table>
<p id="nothing" class="soft"></p>"""
_LATENT = f"""<nav><a href="index.html" id="back"></a><span class="steps"><a id="previous">previous</a><a id="next">next</a>
<form id="jump"><input inputmode="numeric" size="6" placeholder="latent" aria-label="go to latent"></form></span></nav>
{_NO_SCRIPT}
<div id="latent" aria-live="polite"></div>"""


def _check_is_ours(folder: Path) -> None:
    """Refuses to replace what this function did not write."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        ours = name in _PAGES or name == "data"
        if not ours and name.startswith("data/") and path.suffix == ".js":
            with path.open(encoding="utf-8", errors="replace") as file:
                ours = file.read(len(_MARK)) == _MARK
        if not ours or (name in _PAGES and not (folder / "data" / "index.js").is_file()):
            raise SaveError(
                f"{folder} holds {name!r}, which is no page of latents: nothing was written. Choose another folder, or empty "
                f"this one first."
            )


def _chunk_name(i: int) -> str:
    return f"latents_{i:05d}.js"


def _used_tokens(found: LatentDescriptions) -> np.ndarray:
    """The tokens that stand anywhere, in order."""
    parts = (found.top.tokens, found.quantiles.tokens, found.promoted.ids, found.suppressed.ids)
    every = np.unique(np.concatenate([np.unique(part) for part in parts]))
    return every[every >= 0]


def _index(
    found: LatentDescriptions, used: np.ndarray, texts: Sequence[str], predicates: Predicates | None, title: str
) -> dict[str, Any]:
    """What the list of all latents shows, by column."""
    own = found.top.tokens[..., found.before]
    shown = [printable(texts[int(i)]) for i in used]
    is_bytes = lambda place: _BYTES.fullmatch(shown[place]) is not None
    promotes = [sorted(line, key=is_bytes)[:_TOKENS] for line in _places(used, found.promoted.ids)]  # text first
    fires = [[token for token, _ in collections.Counter(line).most_common(_TOKENS)] for line in _places(used, own)]
    return {
        "title": title,
        "chunk": CHUNK,
        "rows": int(found.rows),
        "tokens": shown,
        "rate": _short(found.firing_rate),
        "max": _short(found.max_activation),
        "mean": _short(found.mean_activation),
        "fires": fires,
        "promotes": promotes if found.promoted.ids.size else None,
        "labels": None if predicates is None else [_label(text) for text in predicates.texts],
        "f1": None if predicates is None else _short(predicates.f1),
    }


def _label(text: str) -> str | list[Any]:
    """A label that is a set of tokens as what is one of them, and their texts; any other as it is."""
    found = _SET.fullmatch(text)
    try:
        members = ast.literal_eval(f"[{found[2]}]") if found else []
    except (SyntaxError, ValueError):
        return text
    return [found[1], [*map(printable, members)]] if found and all(isinstance(m, str) for m in members) else text


def _where(title: str, *parts: object) -> str:
    """What a latent is of: the title, and what it leaves out."""
    return ", ".join([title, *(str(part) for part in parts if part and str(part) not in title)])


def _chunks(found: LatentDescriptions, used: np.ndarray) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """What the pages show, so many latents at a time; with the number of the first."""
    for first in range(0, len(found.firing_rate), CHUNK):
        part = slice(first, first + CHUNK)
        top = _contexts(used, found.top.tokens[part, None], found.top.activations[part, None], found.before)
        quantiles = _contexts(used, found.quantiles.tokens[part], found.quantiles.activations[part], found.before)
        promoted = _pairs(_places(used, found.promoted.ids[part]), found.promoted.values[part])
        suppressed = _pairs(_places(used, found.suppressed.ids[part]), found.suppressed.values[part])
        nearest = _pairs(found.nearest.ids[part].tolist(), found.nearest.values[part])
        coactive = _pairs(found.coactive.ids[part].tolist(), found.coactive.values[part], found.coactive_share[part])
        chunk = [
            {
                "counts": np.trim_zeros(found.counts[first + i], "b").tolist(),
                "width": float(found.bin_width[first + i]),
                "top": top[i][0],
                "quantiles": quantiles[i],
                "promoted": promoted[i],
                "suppressed": suppressed[i],
                "nearest": nearest[i],
                "coactive": [pair for pair in coactive[i] if pair[0] >= 0],
            }
            for i in range(len(top))
        ]
        yield first, chunk


def _contexts(used: np.ndarray, tokens: np.ndarray, activations: np.ndarray, before: int) -> list[list[list[Any]]]:
    """By latent and group [n, g, c, W] the contexts that are there: place of the token itself, tokens, [place, activation]s."""
    places = np.searchsorted(used, tokens)
    out = []
    for by_group in zip(tokens, places, activations, strict=True):
        groups = []
        for group in zip(*by_group, strict=True):
            contexts = []
            for ids, names, values in zip(*group, strict=True):
                if ids[before] >= 0:
                    there = np.flatnonzero(ids >= 0)
                    active = [[int(i - there[0]), float(f"{values[i]:.3g}")] for i in np.flatnonzero(values)]
                    contexts.append([int(before - there[0]), names[there].tolist(), active])
            groups.append(contexts)
        out.append(groups)
    return out


def _places(used: np.ndarray, ids: np.ndarray) -> list[list[int]]:
    """Token ids [N, n] as places in the list of used ones, without those that are not there."""
    return [np.searchsorted(used, line[line >= 0]).tolist() for line in ids]


def _pairs(ids: list[list[int]], *values: np.ndarray) -> list[list[list[Any]]]:
    return [
        [[i, *map(number_or_none, more)] for i, *more in zip(line, *rest)]  # noqa: B905
        for line, *rest in zip(ids, *(v.tolist() for v in values), strict=True)
    ]


def _short(values: Any) -> list[float | None]:
    return [number_or_none(v) for v in np.asarray(values, np.float64).tolist()]
