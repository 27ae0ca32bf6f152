"""Parameters from a state dict of TransformerLens, and back. No torch: arrays by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import InputError, WeightsError
from jaxinterp._typing import Params
from jaxinterp.models import Model, TransformerConfig
from jaxinterp.weights._mapping import flatten, together, unflatten
from jaxinterp.weights._transformer_lens_names import (
    BUFFERS,
    OTHER_HEADS,
    Tensor,
    is_encoder,
    is_prenorm,
    tensors,
    unsayable,
)

_FLOATS = ("float64", "float32", "bfloat16", "float16")


def from_transformer_lens(state_dict: Mapping[str, Any], config: TransformerConfig) -> Params:
    """Our parameters from the state dict of a HookedTransformer or a HookedEncoder.

    The names are mostly ours (`blocks.0.attn.W_Q`). What differs:

    - keys and values of grouped queries are `_W_K`, `_W_V`; these names are written where there are fewer of their heads;
    - norm weights there have `norm_weight_offset` (Gemma's 1) in them, and the embedding `embed_scale`: both are taken out again;
    - biases exist there always, and have to be zero where the config has none; so does `unembed.W_U`, which has to be the
      embedding's transpose where the config ties the two, and GPT-J's `ln2`, which has to be a copy of `ln1`;
    - a gated MLP's `b_in` is added there behind the product, so that it moves into `b_out`;
    - buffers are not needed, and those of RoPE are compared with the config;
    - HookedEncoder's pooler and next-sentence head are left out: our models have none;
    - where norms were folded, as `from_pretrained` does, their weights are absent, and ours become those that do nothing
      (a model without norms looks the same: the config says which it is).

    Args:
        state_dict: arrays by name, all of one float dtype: `{k: v.numpy() for k, v in model.state_dict().items()}`; torch tensors
            on the CPU that numpy can read are taken as they are. float64 becomes float32.
        config: the model that they are of. Of a model that was processed, usually tie_word_embeddings=False, unembed_bias=True.

    Raises:
        WeightsError: the state dict is of another config; every difference in one message.
        InputError: TransformerLens has no model of this config.

    Example:
        >>> import jax, jaxinterp as ji
        >>> config = ji.TransformerConfig(n_layers=2, d_model=8, n_ctx=8, n_heads=2, d_head=4, d_vocab=5, d_mlp=8)
        >>> params = ji.Model(config=config).init(jax.random.key(0))
        >>> state_dict = ji.weights.to_transformer_lens(params, config)
        >>> state_dict["blocks.1.attn.W_Q"].shape
        (2, 8, 4)
        >>> back = ji.weights.from_transformer_lens(state_dict, config)
        >>> bool((back["blocks"][0]["attn"]["W_Q"] == params["blocks"][0]["attn"]["W_Q"]).all())
        True
    """
    _check_sayable(config)
    faults: list[str] = []
    arrays = _arrays(state_dict, faults)
    wanted = tensors(config, grouped=config.key_value_heads != config.n_heads or "blocks.0.attn._W_K" in arrays)
    folded = config.norm_position in ("pre", "sandwich") and not any(map(is_prenorm, arrays))
    if folded:
        wanted = {name: tensor for name, tensor in wanted.items() if not is_prenorm(name)}
    _compare(arrays, wanted, config, faults)
    if faults:
        processed = any("unembed." in fault for fault in faults)
        raise WeightsError(
            "The state dict is not of this config:\n  "
            + "\n  ".join(faults)
            + "\nGive the config that it belongs to"
            + (", for processed weights with tie_word_embeddings=False and unembed_bias=True." if processed else ".")
        )
    flat = _ours(arrays, wanted, config)
    for path, leaf in flatten(Model(config=config).param_shapes()).items():
        if path not in flat:  # a folded norm, or the gate's bias
            one = 1.0 - config.norm_weight_offset if path.endswith(".w") else 0.0
            flat[path] = np.full(leaf.shape, one, flat["embed.W_E"].dtype)
    return unflatten(config, {path: jnp.asarray(value) for path, value in flat.items()})


def to_transformer_lens(params: Params, config: TransformerConfig) -> dict[str, np.ndarray]:
    """The state dict that a HookedTransformer (or HookedEncoder) of the same config has, without its buffers.

    The inverse of `from_transformer_lens`, whose docstring lists what differs. To load it there:
    `model.load_state_dict({k: torch.tensor(v) for k, v in state_dict.items()}, strict=False)`.

    Args:
        params: as `Model.init` gives them.
        config: of the model.

    Raises:
        InputError: TransformerLens has no model of this config, or of a gated MLP with these biases.
    """
    _check_sayable(config)
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    biased = [p for p in ("blocks.mlp.b_in", "blocks.mlp.b_gate") if config.gated_mlp and p in flat and flat[p].any()]
    if biased:
        raise InputError(
            f"{' and '.join(biased)} of a gated MLP are not zero. TransformerLens's has no bias of the gate and adds b_in behind "
            "the product, so it cannot compute this model."
        )
    dtype = flat["embed.W_E"].dtype
    wanted, state = tensors(config, grouped=config.key_value_heads != config.n_heads), {}
    for name, tensor in wanted.items():
        if tensor.path is not None:
            value = flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer]
            state[name] = _shifted(tensor.path, value.reshape(tensor.shape), config, 1)
        elif tensor.same_as is None:
            state[name] = np.zeros(tensor.shape, dtype)
    for name, tensor in wanted.items():
        if tensor.same_as is not None:
            state[name] = flat["embed.W_E"].T.copy() if tensor.transposed else state[tensor.same_as].copy()
    return {name: state[name] for name in wanted}


def _check_sayable(config: TransformerConfig) -> None:
    faults = unsayable(config)
    if faults:
        raise InputError(f"TransformerLens has no model of this config: {'; '.join(faults)}.")


def _arrays(state_dict: Mapping[str, Any], faults: list[str]) -> dict[str, np.ndarray]:
    arrays, unreadable = {}, []
    for name, value in state_dict.items():
        try:
            arrays[name] = np.asarray(value)
        except (TypeError, RuntimeError, ValueError) as error:
            unreadable.append(f"{name} ({type(value).__name__}: {error})")
    faults += _section("not readable by numpy (of a torch tensor: .detach().cpu().float())", unreadable)
    return arrays


def _compare(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Tensor], config: TransformerConfig, faults: list[str]
) -> None:
    """All that tells a state dict from those of the config."""
    c = config
    ignored = {f"blocks.{i}.{name}" for i in range(c.n_layers) for name in BUFFERS}
    ignored |= set(OTHER_HEADS) if is_encoder(c) else set()
    missing = [n for n, tensor in wanted.items() if n not in arrays and (tensor.path or tensor.transposed)]
    shaped = [
        f"{name} is {list(arrays[name].shape)}, should be {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in arrays and arrays[name].shape != tensor.shape
    ]
    kinds: dict[str, list[str]] = {}
    for name in wanted:
        if name in arrays:
            kinds.setdefault(arrays[name].dtype.name, []).append(name)
    faults += _section("missing", missing)
    faults += _section("unexpected", [name for name in arrays if name not in wanted and name not in ignored])
    faults += _section("of another shape", shaped)
    if len(kinds) > 1 or set(kinds) - set(_FLOATS):
        listed = "; ".join(f"{dtype}: {', '.join(together(names)[:4])}" for dtype, names in kinds.items())
        faults.append(f"dtypes are mixed or no floats (one of {', '.join(_FLOATS)} is legal): {listed}")
        return
    faults += _section("of another value", list(_other_values(arrays, wanted, c)))


def _other_values(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Tensor], config: TransformerConfig
) -> Iterable[str]:
    """Tensors without a parameter of ours that are not what the config says."""
    c = config
    for name, tensor in wanted.items():
        value = arrays.get(name)
        if value is None or tensor.path is not None or value.shape != tensor.shape:
            continue
        if tensor.same_as is None:
            if value.any():
                yield f"{name} is not zero, and the config has no such parameter"
            continue
        other = arrays.get(tensor.same_as)
        other = other.T if other is not None and tensor.transposed else other
        if other is None or other.shape != value.shape:
            continue
        if tensor.transposed and not _is_close(
            other.astype(np.float32), c.embed_scale * value.astype(np.float32), value.dtype
        ):
            yield f"{name} is not {tensor.same_as} transposed, and the config has tie_word_embeddings=True"
        elif not tensor.transposed and not np.array_equal(value, other):
            yield f"{name} is not equal to {tensor.same_as}, and the config has shared_norm=True"
    yield from _other_rotations(arrays, c)


def _is_close(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> bool:
    """Equal but for the rounding of a product by `embed_scale`."""
    return bool((np.abs(a - b) <= 4 * float(jnp.finfo(dtype).eps) * np.abs(b)).all())


def _other_rotations(arrays: Mapping[str, np.ndarray], config: TransformerConfig) -> Iterable[str]:
    """RoPE's buffers whose angles at position 1 are not the config's frequencies."""
    if not config.rotary_features:
        return
    for layer, frequencies in enumerate(Model(config=config).layer_data()[0]["frequencies"]):
        name = f"blocks.{layer}.attn.rotary_sin"
        if name not in arrays:
            continue
        angles = np.repeat(frequencies, 2) if config.rotary_adjacent_pairs else np.tile(frequencies, 2)
        table = arrays[name].astype(np.float32)
        tolerance = 1e-3 if table.ndim and arrays[name].dtype.itemsize >= 4 else 2e-2
        if table.ndim != 2 or table.shape[0] < 2 or table.shape[1:] != angles.shape:
            yield f"{name} is {list(table.shape)}, and the config turns {len(angles)} features of a head"
        elif not np.allclose(table[1], np.sin(angles), rtol=tolerance, atol=1e-7):
            yield f"{name} has other angles than the config's rotary_base, rotary_scaling and rotary_adjacent_pairs give"


def _ours(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Tensor], config: TransformerConfig
) -> dict[str, np.ndarray]:
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(Model(config=config).param_shapes()).items()}
    by_path: dict[str, list[np.ndarray]] = {}
    for name, tensor in wanted.items():
        if tensor.path is not None:
            by_path.setdefault(tensor.path, []).append(arrays[name])
    flat = {}
    for path, parts in by_path.items():
        whole = np.stack(parts) if path.startswith("blocks.") else parts[0]
        flat[path] = _shifted(path, whole.reshape(shapes[path]), config, -1)
    if config.tie_word_embeddings and config.embed_scale != 1.0:
        flat["embed.W_E"] = arrays["unembed.W_U"].T  # exact; the embedding is rounded behind its scale
    if config.gated_mlp and config.mlp_bias:  # (a * b + b_in) W_out + b_out
        weight, bias, moved = (flat[f"blocks.mlp.{n}"].astype(np.float64) for n in ("W_out", "b_out", "b_in"))
        flat["blocks.mlp.b_out"] = (bias + np.einsum("lf,lfd->ld", moved, weight)).astype(
            flat["blocks.mlp.b_out"].dtype
        )
        flat["blocks.mlp.b_in"] = np.zeros_like(flat["blocks.mlp.b_in"])
    return {path: value.astype(np.float32) if value.dtype == np.float64 else value for path, value in flat.items()}


def _shifted(path: str, value: np.ndarray, config: TransformerConfig, sign: int) -> np.ndarray:
    """A value with what TransformerLens has in it (sign 1), or without (-1): a norm's offset, the embedding's scale."""
    full = value.astype(np.float32) if value.dtype.itemsize < 4 else value
    if path.endswith(".w") and config.norm_weight_offset:
        return (full + sign * full.dtype.type(config.norm_weight_offset)).astype(value.dtype)
    if path == "embed.W_E" and config.embed_scale != 1.0:
        return (full * full.dtype.type(config.embed_scale) ** sign).astype(value.dtype)
    return value


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{len(lines)} {title}: {', '.join(together(lines) if len(lines) > 12 else lines)}"] if lines else []
