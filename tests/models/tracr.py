"""Compiled transformers (`tracr/FORMAT.md` in the data folder) as a `Model` and its parameters."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

import jaxinterp as ji


def read_program(folder, name):
    """The model, its parameters, what the json says, and the reference's residual streams."""
    about = json.loads((folder / f"{name}.json").read_text())
    arrays = np.load(folder / f"{name}.npz")
    layers = range(about["n_layers"])
    config = ji.TransformerConfig(
        n_layers=about["n_layers"], d_model=about["d_model"], n_ctx=about["n_positions"], n_heads=about["n_heads"],
        d_head=about["d_head"], d_vocab=about["d_vocab"], d_mlp=about["d_mlp"], d_vocab_out=arrays["unembed"].shape[1],
        act_fn=about["activation"], normalization_type=None, attn_scale=1 / about["attention_scale"],
        attention_dir="causal" if about["causal"] else "bidirectional",
    )  # fmt: skip
    stacked = lambda part, key: jnp.stack([arrays[f"layers.{i}.{part}.{key}"] for i in layers])
    attn = {k: stacked("attn", k) for k in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")}
    mlp = {k: stacked("mlp", k) for k in ("W_in", "b_in", "W_out", "b_out")}
    params = {
        "embed": {"W_E": jnp.asarray(arrays["token_embed"]), "W_pos": jnp.asarray(arrays["pos_embed"])},
        "blocks": ({"attn": attn, "mlp": mlp},),
        "unembed": {"W_U": jnp.asarray(arrays["unembed"])},
    }
    return SimpleNamespace(
        model=ji.Model(config=config),
        params=params,
        about=about,
        ids=arrays["reference.input_ids"],
        residuals=arrays["reference.residuals"],
    )
