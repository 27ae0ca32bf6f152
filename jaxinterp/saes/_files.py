"""Loading and saving dictionaries, our own and other people's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import ConfigError, InputError, closest
from jaxinterp.saes import _own
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._form import Content, Field, Form, made_config, read_fields
from jaxinterp.saes._forms import FORMS, OWN, SITE, WEIGHTS, check_replaceable, find_folder, form_of
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._source import Source
from jaxinterp.saes._tensors import DTYPES, check, exactly, give, on_host, read_tensors, take, with_dtype, write_tensors
from jaxinterp.store import atomic_folder
from jaxinterp.weights import read_json


def load(
    folder_or_hub_id: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    form: str | None = None,
    dtype: str | None = "float32",
    site: str | None = None,
    target: str | None = None,
    scale: float | None = None,
) -> SAE:
    """A dictionary from a folder or the hub: of our own form, or that of SAELens, Gemma Scope, dictionary_learning or sparsify.

    What a file says and is not understood is an error, if it might change the computation. Names of TransformerLens's hooks
    become our sites (`blocks.3.hook_resid_post`: `resid_post.3`); what is no site of ours keeps its name.

    Args:
        folder_or_hub_id: a folder, or "owner/repository" on the hub.
        subfolder: where in the repository or folder it lies: "layer_20/width_16k/average_l0_71", "layers.3", ...
        revision: the hub's commit, branch or tag.
        form: "jaxinterp", "saelens", "gemma_scope", "dictionary_learning" or "sparsify"; None: told by the files.
        dtype: of the parameters: "float32", "bfloat16", "float16", or None for what they are in the file. Float64 becomes
            float32.
        site: what it reads, where the file does not say it or says it otherwise.
        target: what a transcoder gives, likewise.
        scale: what rows are multiplied by, where the dictionary wants them of a certain mean norm and the file does not say the
            constant (SAELens's expected_average_only_in): the root of the width over the mean norm of the rows. 1.0 is what
            SAELens itself computes with, when it loads such a file.

    Returns:
        The dictionary. `source` holds what the file says beside, so that `save` in the same form gives it back bit for bit.

    Raises:
        MissingFileError: no such folder, repository or file.
        ConfigError: an architecture or fields that are not understood; all of them are named.
        WeightsError: a file is broken, is a pickle, or its tensors do not fit.
        InputError: an argument is not legal.

    Example:
        >>> import tempfile, jax
        >>> from jaxinterp.saes import ReLU, init
        >>> sae = init(SAEConfig(architecture=ReLU(), d_in=4, n_latents=8, site="resid_post.3"), jax.random.key(0))
        >>> folder = save(sae, Path(tempfile.mkdtemp()) / "mine", form="saelens")
        >>> sorted(path.name for path in folder.iterdir())
        ['cfg.json', 'sae_weights.safetensors']
        >>> load(folder).config.site
        'resid_post.3'
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype = {dtype!r} is not legal. Legal: {', '.join(DTYPES)}, or None.")
    if scale is not None and not 0 < scale < float("inf"):
        raise InputError(f"scale = {scale}: above 0.")
    folder, place = find_folder(folder_or_hub_id, subfolder, revision)
    name = form_of(folder, form)
    if name == OWN:
        config, params, scales, source = _own.read(folder)
        check(params, config, str(folder / _own.WEIGHTS))
    else:
        config, params, scales, source = _read(folder, place, name, scale)
    changes = {key: value for key, value in (("site", site), ("target", target)) if value is not None}
    if target is not None and config.target is None:
        raise InputError(f"target = {target!r}, but this dictionary is no transcoder: it gives what it reads.")
    return SAE(
        params={
            key: jnp.array(with_dtype(value, dtype)) for key, value in params.items()
        },  # copies: files are mapped, not read
        scales={key: jnp.asarray(value, jnp.float32) for key, value in scales.items()},
        config=dataclasses.replace(config, **changes),
        source=source,
    )


def save(sae: SAE, folder: str | Path, *, form: str = OWN, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Writes a dictionary as a folder, whole or not at all.

    Our own form holds every dictionary bit for bit, with what a file of another form said beside. Of other forms, the one that
    the dictionary was loaded from is given back as it was: the same tensors, the same config. Where a dictionary is written as
    what another form can hold, it computes the same: constants of a normalization and lengths of decoder rows move into the
    weights (rounded once), BatchTopK and Matryoshka become JumpReLU, as SAELens has them for use. What a form cannot hold is an
    error.

    Args:
        sae: what to write.
        folder: its final name. It must not exist, or be empty, unless `overwrite`.
        form: "jaxinterp" (ours), "saelens", "gemma_scope", "dictionary_learning" or "sparsify".
        dtype: of the tensors, rounding to it. None: those of the file that it came from, where it goes back to that form (an
            error if they cannot hold it exactly), else those of the parameters.
        overwrite: replaces an existing folder, if it holds a dictionary alone.

    Returns:
        The folder.

    Raises:
        InputError: the form cannot hold the dictionary; the message says why.
        SaveError: the folder cannot be written, or is not to be replaced.
        WeightsError: parameters that are not finite, do not fit the config, or do not fit the dtype exactly.
    """
    folder = Path(folder).expanduser()
    if form not in WEIGHTS:
        raise InputError(f"form = {form!r} is not known. {closest(str(form), WEIGHTS)}")
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype = {dtype!r} is not legal. Legal: {', '.join(DTYPES)}, or None.")
    params = on_host(sae.params)
    check(params, sae.config, "This dictionary")
    scales = {name: float(sae.scales[name]) for name in ("input", "target")}
    if overwrite:
        check_replaceable(folder)
    if form == OWN:
        params = {name: with_dtype(leaf, dtype) for name, leaf in params.items()}
        with atomic_folder(folder, replace=overwrite) as temporary:
            _own.write(temporary, sae.config, params, scales, sae.source)
        return folder
    tensors, files = _written(Content(config=sae.config, params=params, scales=scales), form, sae.source, dtype)
    with atomic_folder(folder, replace=overwrite) as temporary:
        write_tensors(temporary / FORMS[form].weights, tensors)
        for name, text in files.items():
            (temporary / name).write_bytes(text)
    return folder


def _read(
    folder: Path, place: str, name: str, scale: float | None
) -> tuple[SAEConfig, dict[str, np.ndarray], dict[str, float], Source]:
    """A dictionary of another form: config, parameters as they stand in the file, scales, and what else the file says."""
    form = FORMS[name]
    raw = {} if form.config_file is None else read_json(folder / form.config_file, "it says what the dictionary is")[1]
    files = {file: (folder / file).read_bytes() for file in form.files if (folder / file).is_file()}
    tensors = read_tensors(folder / form.weights)
    config = form.read(raw, {key: value.shape for key, value in tensors.items()}, place)
    if form.by_place and (folder / SITE).is_file():
        config = _placed(config, read_json(folder / SITE, "it says what the dictionary reads")[1])
    constant = scale if scale is not None else form.scale(files)
    if config.normalize in ("sqrt_d", "unit") and constant is None:
        raise ConfigError(
            f"{folder} wants rows of a certain mean norm (normalize={config.normalize!r}) and does not say what to multiply "
            "them by. Give load(..., scale=the root of the width over the mean norm of the rows), or scale=1.0 for "
            "what SAELens computes."
        )
    if scale is not None and config.normalize not in ("sqrt_d", "unit"):
        raise InputError(
            f"scale = {scale}, but this dictionary multiplies rows by no constant: normalize={config.normalize!r}."
        )
    names = form.tensors(config, tensors)
    params = take(tensors, names, form.idle(config), config, folder / form.weights)
    constants: dict[str, float] = dict.fromkeys(("input", "target"), 1.0 if constant is None else float(constant))
    known = {tensor.name for tensor in names.values()}
    source = Source(
        form=name,
        files=tuple(files.items()),
        params=tuple((key, tensor.name, tensors[tensor.name].dtype.name) for key, tensor in names.items()),
        tensors=tuple((k, v.dtype.name, v.shape, v.tobytes()) for k, v in tensors.items() if k not in known),
    )
    return config, params, constants, source


def _written(
    content: Content, form: str, source: Source | None, dtype: str | None
) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    """The tensors and small files of another form."""
    table, old = FORMS[form], source if source is not None and source.form == form else None
    if old is not None and dtype is None and _is_as_read(content, table, old):
        names = table.tensors(content.config, [theirs for _, theirs, _ in old.params])
        dtypes = {ours: kind for ours, _, kind in old.params}
        params = {name: exactly(name, leaf, dtypes[name]) for name, leaf in content.params.items()}
        kept = {name: np.frombuffer(data, kind).reshape(shape) for name, kind, shape, data in old.tensors}
        return {**give(params, names), **kept}, {**dict(old.files), **_beside(table, content, dict(old.files))}
    content, said, more = table.write(content, {} if old is None else old.config)
    params = {name: with_dtype(leaf, dtype) for name, leaf in content.params.items()}
    said = {**said, **({"dtype": dtype} if dtype and "dtype" in said else {})}
    files = {} if table.config_file is None else {table.config_file: json.dumps(said, indent=1).encode()}
    return {**give(params, table.tensors(content.config, ())), **more}, {**files, **_beside(table, content, {})}


def _placed(config: SAEConfig, said: dict[str, Any]) -> SAEConfig:
    """A config with what `SITE` says, which is nothing but sites."""
    sites, faults = read_fields(said, {"site": Field(str), "target": Field(str, None)})
    told = {name: site for name, site in sites.items() if site is not None}
    return made_config(faults, lambda: dataclasses.replace(config, **told), SITE)


def _beside(table: Form, content: Content, files: dict[str, bytes]) -> dict[str, bytes]:
    """What neither the form's config nor its tensors say: the site, and the constant of a normalization."""
    config, more = content.config, {}
    if table.by_place:
        said = {"site": config.site} if config.target is None else {"site": config.site, "target": config.target}
        more[SITE] = json.dumps(said, indent=1).encode()
    if config.normalize in ("sqrt_d", "unit") and table.scale(files) is None:
        more |= table.scale_file(content.scales["input"])
    return more


def _is_as_read(content: Content, table: Form, old: Source) -> bool:
    """Whether what the file said is still what the dictionary is."""
    config, constant = content.config, table.scale(dict(old.files))
    names = table.tensors(config, ())
    if content.params.keys() != {ours for ours, *_ in old.params} or names.keys() != content.params.keys():
        return False
    theirs = {
        tensor.name: value.shape
        for tensor, value in ((names[n], v.T if names[n].transposed else v) for n, v in content.params.items())
    }
    read = table.read(old.config, theirs, "")
    if table.by_place and (read.target is None) == (config.target is None):
        read = dataclasses.replace(read, site=config.site, target=config.target)
    return read == config and (constant is None or float(np.float32(constant)) == content.scales["input"])
