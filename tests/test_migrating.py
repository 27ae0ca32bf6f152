"""`docs/migrating.md`: its table of sites is the table of aliases, its calls exist, its Python runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxinterp as ji
from jaxinterp.tap._aliases import ALIASES, resolve
from tests.tiny import make_model, make_tokens

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migrating.md").read_text()
MODELS = {
    "GPT-2": make_model(),
    "Llama": make_model(gated_mlp=True, normalization_type="RMS", positional_embedding_type="rotary"),
    "Gemma 2": make_model(gated_mlp=True, normalization_type="RMS", norm_position="sandwich"),
    "OLMo 2": make_model(normalization_type="RMS", norm_position="output"),
    "BERT": make_model(norm_position="post", final_norm=False, attention_dir="bidirectional"),
}


def site_rows():
    """The table that the page should have, from the aliases and the sites of models of several kinds."""
    tables = {kind: ji.sites(model.forward, model.param_shapes(), make_tokens()) for kind, model in MODELS.items()}
    rows = ["| TransformerLens | jaxinterp | |", "| --- | --- | --- |"]
    for alias in ALIASES:
        found: dict[str, list[str]] = {}
        for kind, table in tables.items():
            name = ("blocks.0." if alias.layered else "") + alias.hook
            meaning = resolve(name, [site.name for site in table])
            if meaning is not None:
                demand = " (on demand)" if table[meaning.site].on_demand else ""
                found.setdefault(f"`{meaning.site}`{demand}", []).append(kind)
        first = next(iter(found), "none")
        ours = [site if site == first else f"{site} in {', '.join(kinds)}" for site, kinds in found.items()] or ["none"]
        name = f"`blocks.3.{alias.hook}`" if alias.layered else f"`{alias.hook}`"
        rows.append(f"| {name} | {'; '.join(ours)} | {alias.note} |")
    return rows


def test_the_table_of_sites_is_that_of_the_aliases():
    rows = site_rows()
    start = PAGE.index(rows[0])
    assert PAGE[start:].split("\n\n")[0].splitlines() == rows, "the table should be:\n" + "\n".join(rows)


def test_the_calls_exist():
    lm = ji.zoo.load("stories")
    missing, calls = [], sorted(set(re.findall(r"\b(?:ji|lm)(?:\.[a-zA-Z_]+)+", PAGE)))
    for call in calls:
        value = ji if call.startswith("ji.") else lm
        for part in call.split(".")[1:]:
            value = getattr(value, part, None)
        if value is None:
            missing.append(call)
    assert len(calls) > 20 and not missing, missing


def test_the_examples_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # a user's settings
        for block in blocks:
            exec(block, names)
    assert names["acts"]["blocks.3.attn.hook_pattern"].shape == (1, 8, 5, 5)
    assert abs(names["after"] - names["before"]).max() < 1e-4
    assert jnp.array_equal(names["back"]["embed"]["W_E"], names["lm"].params["embed"]["W_E"])
