"""Sparsify (EleutherAI): cfg.json and sae.safetensors in a folder that is named after a module: layers.3, h.3.mlp, embed_tokens.

Facts of the form: github.com/EleutherAI/sparsify, `sparse_coder.py`, `config.py`, `fused_encoder.py`. Both matrices have a latent
in each row, as ours do; W_skip is transposed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._fold import fold_lengths, fold_scales
from jaxinterp.saes._form import Content, Field, Form, Tensor, Written, made_config, read_fields, refuse
from jaxinterp.saes._topk import TopK

FIELDS = {
    "d_in": Field(int), "k": Field(int, 32), "num_latents": Field((0,), 0), "expansion_factor": Field(int, 32),
    "activation": Field(("topk",), "topk"), "signed": Field((False,), False), "normalize_decoder": Field(bool, True),
    "multi_topk": Field(bool, False), "transcode": Field(bool, False), "skip_connection": Field(bool, False),
    "embed_skip": Field((False,), False), "gram_lookup": Field((False,), False),
}  # fmt: skip
HARMLESS = frozenset("dtype lookup_max_order gram_table_hash".split())
"""What tensors are kept as, and settings of gram_lookup."""


def read(raw: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> SAEConfig:
    """Our config.

    Where there is a skip without `transcode` (files from before that field), their code subtracts the decoder's bias all the
    same, and so does ours.
    """
    fields = {**FIELDS, "num_latents": Field(int, 0)} if raw.get("num_latents") else FIELDS
    v, faults = read_fields(raw, fields, HARMLESS)

    def make() -> SAEConfig:
        module = Path(place).name
        layer = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)", module)
        named = re.search(r"(?:layers|h)\.\d+\.|embed", module)
        site: dict[str, Any] = dict(site=f"resid_post.{layer[1]}" if layer else module if named else "x")
        if v["transcode"] or v["skip_connection"]:
            site = dict(site=f"{module} (input)" if named else "x", target=f"{module} (output)" if named else "y")
        kind = TopK(k=v["k"], multi_k=4 * v["k"] if v["multi_topk"] else None, unit_norm=v["normalize_decoder"])
        n_latents = v["num_latents"] or v["d_in"] * v["expansion_factor"]
        return SAEConfig(
            architecture=kind, d_in=v["d_in"], n_latents=n_latents, skip=v["skip_connection"],
            subtract_decoder_bias=not v["transcode"], **site,
        )  # fmt: skip

    return made_config(faults, make, "sparsify")


def tensors(config: SAEConfig, names: Collection[str]) -> dict[str, Tensor]:
    """The name of each parameter."""
    ours = {
        "W_enc": Tensor("encoder.weight"),
        "b_enc": Tensor("encoder.bias"),
        "W_dec": Tensor("W_dec"),
        "b_dec": Tensor("b_dec"),
    }
    return ours | ({"W_skip": Tensor("W_skip", True)} if config.skip else {})


def write(content: Content, old: dict[str, Any]) -> Written:
    """A TopK dictionary whose output is as wide as its input."""
    content = fold_lengths(fold_scales(content))
    config = content.config
    kind: Any = config.architecture
    is_topk = kind.name == "topk"
    faults = {
        f"the architecture is {kind.name!r}, not TopK": not is_topk,
        f"normalize={config.normalize!r}": config.normalize != "none",
        f"d_out={config.d_out} is not d_in={config.d_in}": config.width_out != config.d_in,
        "its encoder does not subtract the decoder's bias": config.target is None and not config.centers,
        "its encoder subtracts the decoder's bias": config.target is not None and config.centers and not config.skip,
        "Multi-TopK is by 4 k latents": is_topk and kind.multi_k not in (None, 4 * kind.k),
    }
    refuse("sparsify's form", [what for what, holds in faults.items() if holds])
    new = {
        "activation": "topk", "expansion_factor": max(1, config.n_latents // config.d_in), "normalize_decoder": kind.unit_norm,
        "num_latents": config.n_latents, "k": kind.k, "multi_topk": kind.multi_k is not None, "skip_connection": config.skip,
        "transcode": config.target is not None and not config.centers, "d_in": config.d_in,
    }  # fmt: skip
    return Written(content, new)


FORM = Form(weights="sae.safetensors", config_file="cfg.json", read=read, tensors=tensors, write=write, by_place=True)
