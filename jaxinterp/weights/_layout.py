"""What stands in the files of a checkpoint: kept from the one that was loaded, or made for a model of one's own."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxinterp._errors import ConfigError, InputError, WeightsError
from jaxinterp.models import TransformerConfig
from jaxinterp.weights._checkpoint import SINGLE, Shard
from jaxinterp.weights._config import translate
from jaxinterp.weights._families import FAMILIES
from jaxinterp.weights._family import Family
from jaxinterp.weights._mapping import fit
from jaxinterp.weights._safetensors import DTYPES, Entry, make_header, metadata

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Value = Callable[[str], np.ndarray]
"""Gives the values of a tensor by its name in the files, in the parameters' own dtype."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a checkpoint, without the parameters' values.

    Attributes:
        family: the `model_type` of its table.
        config_text: config.json, byte for byte.
        index_text: the index of the shards, byte for byte; None for a single file.
        shards: the headers of the safetensors files.
        buffers: the tensors that are no parameters.
        other_files: files beside the weights that are kept as they are.
    """

    family: str
    config_text: bytes
    index_text: bytes | None
    shards: tuple[Shard, ...]
    buffers: Mapping[str, np.ndarray]
    other_files: Mapping[str, bytes]

    @property
    def entries(self) -> list[Entry]:
        """Every tensor of every file."""
        return [entry for shard in self.shards for entry in shard.header.entries]


def check_same_model(layout: Layout, config: TransformerConfig) -> None:
    """Raises where a loaded layout's config.json no longer describes the model."""
    table = FAMILIES[layout.family]
    differ = _differences(translate(json.loads(layout.config_text), table), config)
    if differ:
        raise InputError(
            f"The model's config was changed since it was loaded ({'; '.join(differ)}), so the config.json that it "
            f"came with no longer describes it. Have a new one written: save(lm, folder, family={layout.family!r}) "
            "where that family can hold it, or family='jaxinterp'."
        )


def new_layout(
    family: str, config: TransformerConfig, flat: Mapping[str, np.ndarray], special: Mapping[str, Any]
) -> Layout:
    """A layout from nothing: one file, with the tensors in the parameters' dtypes.

    Args:
        family: the `model_type` of the table.
        config: the model.
        flat: its parameters by path.
        special: more fields for config.json, for families that have them and where they do not change the
            computation.

    Raises:
        InputError: no such family, or its config.json cannot say what this model is; every difference is named.
    """
    if family not in FAMILIES:
        raise InputError(f"family = {family!r} is not legal. Legal: {', '.join(map(repr, FAMILIES))}.")
    table = FAMILIES[family]
    raw = {**_described(table, config), **{key: value for key, value in special.items() if key in table.harmless}}
    tensors = []
    for place in fit(table, config).places:
        dtype, shape = DTYPE_NAMES[flat[place.paths[0]].dtype], place.transform.file_shape(place.shapes)
        tensors += [(name, dtype, shape) for name in place.names]
    header = make_header(tensors, {"format": "pt"})
    return Layout(
        family=family,
        config_text=_json_text(raw),
        index_text=None,
        shards=(Shard(file=SINGLE, header=header),),
        buffers={},
        other_files={},
    )


def _described(table: Family, config: TransformerConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {"model_type": table.model_type}
    if table.architectures:
        raw["architectures"] = [table.architectures[0]]
    raw |= {theirs: getattr(config, ours) for theirs, ours in table.same.items()} | table.describe(config)
    try:
        differ = _differences(translate(raw, table), config)
    except ConfigError as error:
        differ = [str(error)]
    if differ:
        raise InputError(
            f"A config.json of the family {table.model_type!r} cannot say what this model is: {'; '.join(differ)}. "
            "Save it in jaxinterp's own layout, which holds every model: save(lm, folder, family='jaxinterp')."
        )
    return raw


def _differences(described: TransformerConfig, config: TransformerConfig) -> list[str]:
    """The fields in which what a config.json says and a model compute otherwise."""
    a, b = dataclasses.asdict(_resolved(described)), dataclasses.asdict(_resolved(config))
    return [f"{name} is {b[name]!r} and would be read as {a[name]!r}" for name in a if a[name] != b[name]]


def _resolved(config: TransformerConfig) -> TransformerConfig:
    """Defaults written out and idle fields reset, so that equal computations compare equal."""
    rotary = {} if config.rotary_features else {"rotary_base": 10000.0, "rotary_scaling": None}
    return dataclasses.replace(
        config,
        precision="highest",
        compute_dtype=None,
        attn_types=config.attn_types if len(set(config.is_local)) > 1 else None,
        initializer_range=0.02,
        n_key_value_heads=config.key_value_heads,
        d_vocab_out=config.outputs,
        attn_scale=config.attn_scale or math.sqrt(config.d_head),
        rotary_dim=config.rotary_features or None,
        **rotary,
    )


def with_dtype(layout: Layout, dtype: np.dtype) -> Layout:
    """The layout with every weight in `dtype`, and config.json and index saying so."""

    def retyped(entry: Entry) -> tuple[str, str, tuple[int, ...]]:
        return entry.name, entry.dtype if entry.name in layout.buffers else DTYPE_NAMES[dtype], entry.shape

    shards = tuple(
        Shard(file=shard.file, header=make_header(map(retyped, shard.header.entries), metadata(shard.header)))
        for shard in layout.shards
    )
    config = json.loads(layout.config_text)
    config |= {key: dtype.name for key in ("torch_dtype", "dtype") if key in config}
    index = None
    if layout.index_text is not None:
        index = json.loads(layout.index_text)
        index.setdefault("metadata", {})["total_size"] = sum(shard.header.size for shard in shards)
    return dataclasses.replace(
        layout,
        config_text=_json_text(config),
        index_text=None if index is None else _json_text(index),
        shards=shards,
    )


def check_exact(layout: Layout, value: Value) -> None:
    """Raises where the files' dtypes would round the parameters."""
    rounded: dict[str, list[str]] = {}
    for entry in layout.entries:
        array, target = value(entry.name), DTYPES[entry.dtype]
        if array.dtype != target:
            with np.errstate(over="ignore"):
                back = array.astype(target).astype(array.dtype)
            if not np.array_equal(array, back):
                rounded.setdefault(f"{array.dtype} to {entry.dtype}", []).append(entry.name)
    if rounded:
        listed = [f"{kinds}: {', '.join(n[:5])}{' and others' * (len(n) > 5)}" for kinds, n in rounded.items()]
        raise WeightsError(
            f"The checkpoint's dtype cannot hold the parameters exactly ({'; '.join(listed)}), and nothing was "
            "written. Say which it should be: save(lm, folder, dtype='float32') keeps them, save(lm, folder, "
            "dtype='bfloat16') rounds them."
        )


def _json_text(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()
