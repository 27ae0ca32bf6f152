"""The same dictionary with less to say beside its matrices, for forms that cannot say it; on the host, rounded once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxinterp._errors import InputError
from jaxinterp.saes._form import Content
from jaxinterp.saes._jump_relu import JumpReLU

PER_LATENT = ("W_enc", "b_enc", "b_gate", "b_mag")
"""What a latent's activation is linear in."""


def fold_lengths(content: Content) -> Content:
    """With decoder rows of length 1, where latents are scaled by their length: it moves into the encoder."""
    architecture: Any = content.config.architecture
    if not getattr(architecture, "norm_scaled", False):
        return content
    params = _wide(content)
    lengths = np.maximum(np.linalg.norm(params["W_dec"], axis=1), 1e-15)
    for name in params.keys() & set(PER_LATENT):
        params[name] = params[name] * lengths.reshape(-1, *(1,) * (params[name].ndim - 1))
    params["W_dec"] = params["W_dec"] / lengths[:, None]
    return _narrow(content, params, architecture=dataclasses.replace(architecture, norm_scaled=False))


def fold_scales(content: Content) -> Content:
    """With normalize "none", where rows are multiplied by constants: they move into the weights.

    Raises:
        InputError: the encoder subtracts the decoder's bias, and that has another scale.
    """
    config = content.config
    if config.normalize not in ("sqrt_d", "unit"):
        return content
    content = fold_lengths(content)  # whose latents would change with the length of the decoder's rows
    params, before, after = _wide(content), content.scales["input"], content.scales["target"]
    if config.centers and before != after:
        raise InputError(
            f"Inputs are multiplied by {before:g} and outputs by {after:g}, and the encoder subtracts the decoder's bias: "
            "the two constants cannot be moved into the weights."
        )
    params["W_enc"] = params["W_enc"] * before
    params["W_dec"], params["b_dec"] = params["W_dec"] / after, params["b_dec"] / after
    if "W_skip" in params:
        params["W_skip"] = params["W_skip"] * before / after
    folded = _narrow(content, params, normalize="none")
    return dataclasses.replace(folded, scales={"input": 1.0, "target": 1.0})


def fold_center(content: Content) -> Content:
    """With an encoder that reads rows as they are, where it subtracted the decoder's bias: that moves into its own."""
    if not content.config.centers or "b_enc" not in content.params:
        return content
    params = _wide(content)
    params["b_enc"] = params["b_enc"] - params["W_enc"] @ params["b_dec"]
    return _narrow(content, params, subtract_decoder_bias=False)


def as_jump_relu(content: Content) -> Content:
    """With a threshold for each latent: JumpReLU by `threshold`, BatchTopK and Matryoshka. Others are as they were."""
    architecture: Any = content.config.architecture
    if architecture.name not in ("jump_relu", "batch_topk", "matryoshka"):
        return content
    if architecture.name == "jump_relu" and architecture.parameter == "threshold":
        return content
    content = fold_lengths(content)
    params = _wide(content)
    if architecture.name == "jump_relu":
        params["threshold"] = np.exp(params.pop("log_threshold"))
        return _narrow(content, params, architecture=dataclasses.replace(architecture, parameter="threshold"))
    params["threshold"] = np.full(content.config.n_latents, max(float(params["threshold"]), 0.0))
    kind = JumpReLU(parameter="threshold", unit_norm=architecture.unit_norm, bias=architecture.bias)
    return _narrow(content, params, architecture=kind)


def _wide(content: Content) -> dict[str, np.ndarray]:
    return {name: leaf.astype(np.float64) for name, leaf in content.params.items()}


def _narrow(content: Content, params: dict[str, np.ndarray], **changes: Any) -> Content:
    """What changed is rounded to float32; what did not keeps its dtype."""
    new = {}
    for name, leaf in params.items():
        old = content.params.get(name)
        same = old is not None and old.shape == leaf.shape and np.array_equal(old.astype(np.float64), leaf)
        new[name] = old if same else leaf.astype(np.float32)
    # another architecture may center by default where this one does not
    changes = {"subtract_decoder_bias": content.config.centers, **changes}
    return dataclasses.replace(content, params=new, config=dataclasses.replace(content.config, **changes))
