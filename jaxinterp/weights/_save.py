"""A `LanguageModel` to a folder: the layout that it came from, bit for bit, or a new one."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import InputError, SaveError, WeightsError
from jaxinterp.models import Model
from jaxinterp.store import atomic_folder
from jaxinterp.weights._assemble import legal_dtype, value_fault
from jaxinterp.weights._checkpoint import CONFIG, INDEX
from jaxinterp.weights._families import FAMILIES
from jaxinterp.weights._language_model import LanguageModel
from jaxinterp.weights._layout import Layout, Value, check_exact, check_same_model, new_layout, with_dtype
from jaxinterp.weights._load import OTHER_FILES
from jaxinterp.weights._mapping import Fitted, file_tensor, fit, flatten
from jaxinterp.weights._native import NATIVE
from jaxinterp.weights._safetensors import DTYPES, write
from jaxinterp.weights._tokenizer import FILES


def save(
    language_model: LanguageModel,
    folder: str | Path,
    *,
    dtype: Any = None,
    family: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a language model as a checkpoint folder that `load` reads.

    A model that was loaded is written in the layout that it came from: the same files, tensors, dtypes and config, so
    that a load followed by a save gives the same bytes (and other tools read it). A model made here is written in
    jaxinterp's own layout, or in that of a family that can hold it. The folder appears whole under its name or not at
    all. The BOS policy that is kept is that of the tokenizer's files, whatever `load` was told.

    Args:
        language_model: what to write.
        folder: its final name. It must not exist, or be empty, unless `overwrite`.
        dtype: of the tensors: float32, bfloat16 or float16, rounding to it; None keeps what the checkpoint had, and
            is an error where that cannot hold the parameters exactly.
        family: None for the layout that it came from (of a model made here: "jaxinterp", our own, which holds every
            model). A name of `weights.FAMILIES` ("jaxinterp", "gpt2", "llama", ...), for a new single file of that
            family.
        overwrite: replaces an existing folder, if it is a checkpoint and holds nothing else.

    Returns:
        The folder.

    Raises:
        SaveError: the folder cannot be written, or is not to be replaced.
        WeightsError: parameters that are not finite, do not fit the model, or do not fit the dtype exactly.
        InputError: the family's config.json cannot say what the model is: it was changed since it was loaded, or is
            of another make.

    Example:
        >>> import tempfile, jaxinterp as ji
        >>> lm = ji.load("../shared/data/stories260k")
        >>> folder = ji.save(lm, tempfile.mkdtemp())
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    folder = Path(folder).expanduser()
    if overwrite:
        _check_replaceable(folder)
    target = None if dtype is None else legal_dtype(dtype)
    flat = _checked(language_model, target)
    layout = _layout(language_model, family, flat)
    table = FAMILIES[layout.family]
    fitted = fit(table, language_model.config, [entry.name for entry in layout.entries])
    value = _values(fitted, layout, flat)
    if target is None:
        check_exact(layout, value)
    else:
        layout = with_dtype(layout, target)
    with atomic_folder(folder, replace=overwrite) as temporary:
        for shard in layout.shards:
            dtypes = {entry.name: DTYPES[entry.dtype] for entry in shard.header.entries}
            write(temporary / shard.file, shard.header, lambda name, d=dtypes: value(name).astype(d[name], copy=False))
        files = {CONFIG: layout.config_text, INDEX: layout.index_text, **layout.other_files}
        files |= language_model.tokenizer.files if language_model.tokenizer else {}
        for name, text in files.items():
            if text is not None:
                (temporary / name).write_bytes(text)
    return folder


def _check_replaceable(folder: Path) -> None:
    """Raises unless all that `folder` holds is what a checkpoint holds, so that nothing else is ever deleted."""
    if not folder.is_dir():
        return
    known = {CONFIG, INDEX, *FILES, *OTHER_FILES}
    others = sorted(
        p.name for p in folder.iterdir() if not (p.is_file() and (p.name in known or p.suffix == ".safetensors"))
    )
    if others or not (folder / CONFIG).is_file():
        raise SaveError(
            f"{folder} holds {', '.join(others[:5]) or 'no config.json'}, so it is not a checkpoint alone, and "
            "overwrite=True would delete it. Nothing was written. Choose another folder, or empty this one first."
        )


def _checked(lm: LanguageModel, dtype: np.dtype | None) -> dict[str, np.ndarray]:
    """The parameters by path on the host, after the checks that `load` would make."""
    if lm.model != Model(config=lm.config):
        raise InputError(
            "This model has functions of its own (block_fn, ...), which no checkpoint can hold. Save its params yourself."
        )
    shapes = flatten(Model(config=lm.config).param_shapes())
    flat = flatten(lm.params)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in flat.values()):
        raise InputError(
            "These parameters lie over several processes, and a checkpoint folder is written by one that has all of them. Keep "
            "them by jaxinterp.store.save_tree(lm.params, folder), which each process calls."
        )
    faults = [f"{path} is missing" for path in shapes if path not in flat]
    faults += [f"{path} is not of this model" for path in flat if path not in shapes]
    faults += [
        f"{path} is {list(flat[path].shape)}, should be {list(shapes[path].shape)}"
        for path in shapes
        if path in flat and tuple(flat[path].shape) != shapes[path].shape
    ]
    host = {path: np.asarray(leaf) for path, leaf in flat.items()} if not faults else {}
    for path, array in host.items():
        fault = value_fault(array, array.dtype if dtype is None else dtype)
        faults += [f"{path} holds {fault}"] if fault else []
    if faults:
        raise WeightsError("The parameters make no checkpoint, and nothing was written: " + "; ".join(faults) + ".")
    return host


def _layout(lm: LanguageModel, family: str | None, flat: dict[str, np.ndarray]) -> Layout:
    """The layout that the model came from, or a new one."""
    if family is None and lm.layout is not None:
        check_same_model(lm.layout, lm.config)
        return lm.layout
    special: dict[str, Any] = {"dtype": flat["embed.W_E"].dtype.name}
    if lm.tokenizer is None:
        special["tokenizer"] = None
    else:
        special |= {"bos_token_id": lm.tokenizer.bos_id, "eos_token_id": lm.tokenizer.eos_id}
    return new_layout(family or NATIVE.model_type, lm.config, flat, special)


def _values(fitted: Fitted, layout: Layout, flat: dict[str, np.ndarray]) -> Value:
    """Each tensor of the files, made when it is asked for."""
    where = {name: (place, layer) for place in fitted.places for layer, name in enumerate(place.names)}

    def value(name: str) -> np.ndarray:
        if name in layout.buffers:
            return layout.buffers[name]
        place, layer = where[fitted.twins.get(name, name)]
        return file_tensor(place, layer, flat)

    return value
