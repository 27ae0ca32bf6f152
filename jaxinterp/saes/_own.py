"""Our own form of a dictionary: config.json, dictionary.safetensors, and what a file of another form said, in `source/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import ConfigError
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._described import config_from, described
from jaxinterp.saes._source import Source
from jaxinterp.weights import read_json, read_safetensors, write_safetensors

WEIGHTS, CONFIG, SOURCE = "dictionary.safetensors", "config.json", "source"
SCALES = ("input", "target")
VERSION = 1


def write(
    folder: Path, config: SAEConfig, params: dict[str, np.ndarray], scales: dict[str, float], source: Source | None
) -> None:
    """Fills a folder."""
    tensors = {**params, **{f"scales.{name}": np.asarray(scales[name], np.float32) for name in SCALES}}
    said: dict[str, Any] = {"form": "jaxinterp", "version": VERSION, "sae": described(config)}
    if source is not None:
        said["source"] = {"form": source.form, "files": [name for name, _ in source.files], "params": source.params}
        for name, dtype, shape, data in source.tensors:
            tensors[f"source.{name}"] = np.frombuffer(data, dtype).reshape(shape)
        (folder / SOURCE).mkdir()
        for name, data in source.files:
            (folder / SOURCE / name).write_bytes(data)
    (folder / CONFIG).write_text(json.dumps(said, indent=1))
    write_safetensors(folder / WEIGHTS, tensors)


def read(folder: Path) -> tuple[SAEConfig, dict[str, np.ndarray], dict[str, float], Source | None]:
    """What `write` wrote.

    Raises:
        ConfigError: config.json is of a newer version, or says what is not understood.
        MissingFileError: a file is not there.
        WeightsError: a file is truncated or corrupt.
    """
    said = read_json(folder / CONFIG, "it says what the dictionary is")[1]
    if said.get("form") != "jaxinterp" or said.get("version") != VERSION or not isinstance(said.get("sae"), dict):
        raise ConfigError(
            f"{folder / CONFIG} is of form {said.get('form')!r} and version {said.get('version')!r}; this jaxinterp reads form "
            f"'jaxinterp', version {VERSION}. Update jaxinterp, or download the folder again."
        )
    tensors = read_safetensors(folder / WEIGHTS)
    params = {name: value for name, value in tensors.items() if "." not in name}
    scales = {name: float(tensors[f"scales.{name}"]) for name in SCALES if f"scales.{name}" in tensors}
    return (
        config_from(said["sae"]),
        params,
        {**dict.fromkeys(SCALES, 1.0), **scales},
        _source(folder, said.get("source"), tensors),
    )


def _source(folder: Path, said: dict[str, Any] | None, tensors: dict[str, np.ndarray]) -> Source | None:
    if said is None:
        return None
    kept = [(name, value) for name, value in tensors.items() if name.startswith("source.")]
    return Source(
        form=said["form"],
        files=tuple(
            (name, (folder / SOURCE / name).read_bytes()) for name in (Path(path).name for path in said["files"])
        ),
        params=tuple((ours, theirs, dtype) for ours, theirs, dtype in said["params"]),
        tensors=tuple((n.removeprefix("source."), v.dtype.name, v.shape, v.tobytes()) for n, v in kept),
    )
