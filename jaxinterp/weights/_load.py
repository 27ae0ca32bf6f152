"""A checkpoint folder, or a model of the hub, to a `LanguageModel`."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxinterp._errors import InputError
from jaxinterp.models import Model, TransformerConfig
from jaxinterp.weights._assemble import assemble, legal_dtype, read_buffers
from jaxinterp.weights._checkpoint import Checkpoint, open_checkpoint
from jaxinterp.weights._config import translate
from jaxinterp.weights._families import find_family
from jaxinterp.weights._hub import find_folder
from jaxinterp.weights._language_model import LanguageModel
from jaxinterp.weights._layout import Layout
from jaxinterp.weights._mapping import Fitted, check, fit, flatten, together
from jaxinterp.weights._partition import Rules, partition_specs
from jaxinterp.weights._tokenizer import Tokenizer

OTHER_FILES = ("generation_config.json",)


def load(
    folder_or_hub_id: str | Path,
    *,
    dtype: Any = jnp.float32,
    compute_dtype: Any = None,
    revision: str | None = None,
    prepend_bos: bool | None = None,
    tokenizer: Tokenizer | str | Path | Literal["auto"] | None = "auto",
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> LanguageModel:
    """Loads a language model from a folder or from the Hugging Face hub.

    The folder holds config.json, model.safetensors (or its shards and their index) and tokenizer.json. Pickles are
    never opened, and no code of the checkpoint is run. Families: GPT-2, GPT-NeoX (Pythia), GPT-J, Llama, Mistral, Qwen 2 and 3,
    Gemma 1 to 3 (text), Phi-3, OLMo 2, BERT (with its masked-language head) and jaxinterp's own format; a config field that
    changes the computation and is not understood is an error. The files are mapped into memory, so that a
    load needs little more memory than the parameters themselves.

    Args:
        folder_or_hub_id: a path, or "owner/model" on the hub (fetched once into its cache, safetensors and JSON files
            alone).
        dtype: of the parameters: float32, bfloat16 or float16; the checkpoint's own values are rounded to it.
        compute_dtype: of activations and matrix products, the same three; None: as the parameters. Norms, softmax and logits are
            in float32 in any case. (How exact float32 products are is `TransformerConfig.precision`.)
        revision: branch, tag or commit on the hub.
        prepend_bos: whether BOS stands before every prompt; None follows the tokenizer's own files (see
            `Tokenizer.from_folder`).
        tokenizer: "auto" reads the folder's tokenizer.json; a path reads another folder's; None loads without one,
            for work on ids alone.
        mesh: devices to share the parameters among, with the axes `data` and `tensor`: each device gets its part of each
            parameter straight from the files (see `partition_specs`). With several processes all of them call this, each with the
            folder in reach. None: all on one device.
        rules: how single parameters are cut, before the table that `partition_specs` describes, as in
            `rules={"blocks.attn.W_K": PartitionSpec()}`.

    Returns:
        The model, its parameters, its tokenizer, and where they came from.

    Raises:
        MissingFileError: a file, the folder or the hub is not there; all missing shards are named.
        ConfigError: an unsupported architecture, or a config that is not understood; all such fields are named.
        WeightsError: broken files; missing, unexpected, mis-shaped or non-finite tensors, all named in one message.
        InputError: a dtype that is not legal; a mesh that does not divide the parameters, all of which are named.

    Warns:
        UserWarning: the tensors have several dtypes in the files; all become `dtype`. (`save` writes each in its own again.)

    Example:
        >>> import jaxinterp as ji
        >>> lm = ji.load("../shared/data/stories260k")
        >>> lm.config.n_layers, lm.tokenizer.prepend_bos
        (5, True)
    """
    if prepend_bos is not None and tokenizer is None:
        raise InputError(
            "prepend_bos is a setting of the tokenizer, and tokenizer=None asks for none. Leave one of them out."
        )
    if rules is not None and mesh is None:
        raise InputError(
            "rules say how parameters are cut over a mesh, and none was given: load(folder, mesh=mesh, rules=rules)."
        )
    target = legal_dtype(dtype)
    computed = None if compute_dtype is None else legal_dtype(compute_dtype).name
    folder, commit = find_folder(folder_or_hub_id, revision)
    checkpoint = open_checkpoint(folder)
    raw = checkpoint.config
    family = find_family(raw)
    config = translate(raw, family)
    fitted = fit(family, config, checkpoint.entries)
    check(fitted, {name: entry for name, (_, entry) in checkpoint.entries.items()}, str(folder))
    shardings = None if mesh is None else _shardings(config, mesh, rules)
    _tell_of_mixed_dtypes(checkpoint, fitted, target)
    reader = _tokenizer(folder, raw, tokenizer, prepend_bos)
    buffers = read_buffers(checkpoint, fitted, config)
    params = assemble(checkpoint, fitted, config, target, shardings)
    return LanguageModel(
        model=Model(config=dataclasses.replace(config, compute_dtype=computed)),
        params=params,
        tokenizer=reader,
        source={
            "name": folder.resolve().name if commit is None else str(folder_or_hub_id),
            "folder": str(folder),
            "revision": commit,
            "family": family.model_type,
            "dtype": target.name,
            "prepend_bos": None if reader is None else reader.prepend_bos,
            "config": raw,
        },
        layout=Layout(
            family=family.model_type,
            config_text=checkpoint.config_text,
            index_text=checkpoint.index_text,
            shards=checkpoint.shards,
            buffers=buffers,
            other_files={name: (folder / name).read_bytes() for name in OTHER_FILES if (folder / name).is_file()},
        ),
    )


def _shardings(config: TransformerConfig, mesh: Mesh, rules: Rules | None) -> dict[str, NamedSharding]:
    """Where each parameter goes, by path."""
    shapes = Model(config=config).param_shapes()
    specs = partition_specs(shapes, mesh, rules)
    return {path: NamedSharding(mesh, spec) for path, spec in flatten(specs).items()}


def _tell_of_mixed_dtypes(checkpoint: Checkpoint, fitted: Fitted, dtype: np.dtype) -> None:
    names: dict[str, list[str]] = {}
    for place in fitted.places:
        for name in place.names:
            names.setdefault(checkpoint.entries[name][1].dtype, []).append(name)
    if len(names) < 2:
        return
    counts = ", ".join(f"{len(group)} {kind}" for kind, group in names.items())
    few = together(min(names.values(), key=len))
    warnings.warn(
        f"The weights in {checkpoint.folder} have several dtypes: {counts} (the fewest are {', '.join(few[:6])}"
        f"{', ...' * (len(few) > 6)}). All parameters become {dtype.name}, which is the argument dtype of load; where that is "
        "narrower, they were rounded.",
        stacklevel=3,
    )


def _tokenizer(folder: Path, raw: dict[str, Any], choice: Any, prepend_bos: bool | None) -> Tokenizer | None:
    if isinstance(choice, Tokenizer):
        return choice if prepend_bos is None else dataclasses.replace(choice, prepend_bos=prepend_bos)
    if choice is None or (choice == "auto" and raw.get("tokenizer", "") is None):
        return None
    return Tokenizer.from_folder(folder if choice == "auto" else Path(choice).expanduser(), prepend_bos=prepend_bos)
