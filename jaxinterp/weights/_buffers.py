"""Tensors that some checkpoints carry although nothing learned them: what their values have to be."""

import numpy as np

from jaxinterp.models import TransformerConfig


def mask_fault(mask: np.ndarray, config: TransformerConfig) -> str | None:
    """The causal mask of GPT-2's, GPT-J's and GPT-NeoX's attention."""
    n = mask.shape[-1]
    if mask.ndim != 4 or mask.shape != (1, 1, n, n) or n < config.n_ctx:
        return f"its shape is {mask.shape}, where a mask [1, 1, {config.n_ctx}, {config.n_ctx}] was expected"
    if not np.array_equal(mask[0, 0] != 0, np.tri(n, dtype=bool)):
        return "it is not the causal mask, so the model would attend otherwise"
    return None


def masked_bias_fault(value: np.ndarray, config: TransformerConfig) -> str | None:
    """What those families put where the mask forbids."""
    small = value.size == 1 and float(value.reshape(-1)[0]) <= -1e4
    return None if small else "it is not one large negative number, so masked positions would be attended"


def frequencies_fault(value: np.ndarray, config: TransformerConfig) -> str | None:
    """RoPE's angles."""
    width = config.rotary_features
    plain = config.rotary_base ** -(np.arange(0, width, 2) / width)
    if config.rotary_scaling is not None or (
        value.shape == plain.shape and np.allclose(value.astype(np.float64), plain, rtol=1e-2)
    ):
        return None
    return "its values are not the rotary frequencies of the config"


def position_ids_fault(value: np.ndarray, config: TransformerConfig) -> str | None:
    """The numbers of the positions, from 0 up."""
    return None if np.array_equal(value.reshape(-1), np.arange(value.size)) else "it does not count from 0"


def of_another_head(value: np.ndarray, config: TransformerConfig) -> str | None:
    """Weights of another head of the model, which logits do not pass through: anything is right, and kept."""
    return None
