"""Rotary position embeddings."""

import math

import jax.numpy as jnp
import numpy as np

from jaxinterp._typing import Array, Float, Int


def rotary_frequencies(dim: int, base: float) -> np.ndarray:
    """Angles per position, base^(-2i/dim) for i = 0 .. dim/2 - 1, in radians; float32 [dim/2].

    Source: Su et al. 2021 (arXiv 2104.09864), equation 15.
    """
    return (1.0 / base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)


def scale_linear(frequencies: np.ndarray, *, factor: float) -> np.ndarray:
    """Position interpolation: every angle divided by `factor`. Source: Chen et al. 2023 (arXiv 2306.15595)."""
    return (frequencies / factor).astype(np.float32)


def scale_llama3(
    frequencies: np.ndarray, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_n_ctx: int
) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a linear blend between.

    A wavelength is long above original_n_ctx / low_freq_factor and short below original_n_ctx / high_freq_factor.

    Source: the Llama 3.1 release; the rule is part of its checkpoints' configuration (`rope_type: llama3`).
    """
    f = frequencies.astype(np.float64)
    wavelength = 2 * math.pi / f
    blend = (original_n_ctx / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * f / factor + blend * f).astype(np.float32)


def rotate(
    x: Float[Array, "B T H E"],
    positions: Int[Array, "#B T"],
    frequencies: Float[Array, " half"],
    *,
    adjacent_pairs: bool = False,
) -> Float[Array, "B T H E"]:
    """Turns the first 2 * len(frequencies) features of each head by position times frequency, in float32.

    Args:
        x: queries or keys.
        positions: absolute.
        frequencies: radians per position.
        adjacent_pairs: features 2i and 2i + 1 are a pair; else i and i + half (the layout of most of Hugging Face's
            checkpoints).
    """
    half = frequencies.shape[-1]
    angle = positions[..., None].astype(jnp.float32) * frequencies.reshape(1, 1, half)
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    turning, rest = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    a, b = (turning[..., ::2], turning[..., 1::2]) if adjacent_pairs else jnp.split(turning, 2, axis=-1)
    pair = [a * cos - b * sin, b * cos + a * sin]
    turned = jnp.stack(pair, -1).reshape(turning.shape) if adjacent_pairs else jnp.concatenate(pair, -1)
    turned = turned.astype(x.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned
