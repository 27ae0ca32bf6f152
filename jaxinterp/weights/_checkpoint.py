"""A checkpoint folder, opened: its config, its shards, and where each tensor lies. Nothing of a model's family is known here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp._errors import MissingFileError, WeightsError
from jaxinterp.weights import _safetensors

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One safetensors file of a checkpoint."""

    file: str
    header: _safetensors.Header


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a folder holds; tensors are read when they are asked for."""

    folder: Path
    config_text: bytes
    index_text: bytes | None
    shards: tuple[Shard, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return json.loads(self.config_text)

    @property
    def entries(self) -> dict[str, tuple[Shard, _safetensors.Entry]]:
        """Every tensor by its name, with the shard that holds it."""
        return {entry.name: (shard, entry) for shard in self.shards for entry in shard.header.entries}

    def read(self, shard: Shard, entry: _safetensors.Entry) -> np.ndarray:
        """A read-only view of one tensor."""
        return _safetensors.read_tensor(self.folder / shard.file, shard.header, entry)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the checkpoint in `folder`: reads config.json and the headers of all shards, no tensor.

    Raises:
        MissingFileError: config.json, the weights or some shards are not there (all missing shards are named).
        WeightsError: a file is broken, or the weights are there as pickles only.
    """
    config_text = read_json(folder / CONFIG, "it says what the model is; it comes with the checkpoint")[0]
    files, index_text, placed = _shard_files(folder)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise MissingFileError(
            f"{folder} lacks {len(missing)} of the {len(files)} shards that {INDEX} names: {', '.join(missing)}. "
            "Download or copy them into the folder; with fewer shards the model would have holes."
        )
    shards = tuple(Shard(file=file, header=_safetensors.read_header(folder / file)) for file in files)
    _check_index(folder, shards, placed)
    return Checkpoint(folder=folder, config_text=config_text, index_text=index_text, shards=shards)


def read_json(path: Path, purpose: str) -> tuple[bytes, dict[str, Any]]:
    """The bytes and the table of the JSON file at `path`; `purpose` completes the error when it is not there."""
    if not path.is_file():
        raise MissingFileError(f"{path.parent} has no {path.name}: {purpose}.")
    text = path.read_bytes()
    try:
        table = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{path} is not legal JSON ({error}). Download or copy the file again.") from error
    if not isinstance(table, dict):
        raise WeightsError(f"{path} holds a {type(table).__name__} where a table of names and values was expected.")
    return text, table


def _shard_files(folder: Path) -> tuple[list[str], bytes | None, dict[str, str]]:
    """The names of the shards, the text of the index, and its table from tensor to shard; the last two empty for one file."""
    if (folder / INDEX).is_file():
        text, table = read_json(folder / INDEX, "")
        placed = table.get("weight_map")
        if not isinstance(placed, dict) or not placed or any(not isinstance(file, str) for file in placed.values()):
            raise WeightsError(
                f"{folder / INDEX} has no weight_map from tensor names to files. Download or copy the file again."
            )
        outside = sorted({file for file in placed.values() if Path(file).name != file or "\\" in file})
        if outside:
            raise WeightsError(
                f"{folder / INDEX} names files outside of its folder: {', '.join(outside)}. Only plain file names are read."
            )
        return sorted(set(placed.values())), text, placed
    if (folder / SINGLE).is_file():
        return [SINGLE], None, {}
    raise _no_weights(folder)


def _no_weights(folder: Path) -> Exception:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if pickles:
        return WeightsError(pickle_message(folder, pickles))
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    hint = f" It holds {', '.join(others)}: rename the file, or add the index." if others else ""
    return MissingFileError(
        f"{folder} has neither {SINGLE} nor {INDEX}: there are no weights to load.{hint} Weights of another kind "
        "(pytorch_model.bin on a model's page of the hub, say) are converted to safetensors first."
    )


def pickle_message(folder: Path, pickles: list[str]) -> str:
    """Why pickles are not opened, and how to convert them."""
    return (
        f"{folder} holds its weights as {', '.join(pickles)}. Such a file is a pickle, which can run any program "
        "when it is opened, so jaxinterp never opens one. Convert it where you trust it, in an environment with "
        "torch and transformers:\n"
        '  python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder.name}-safetensors')\"\nthen copy tokenizer.json and "
        f"tokenizer_config.json beside the result and load '{folder.name}-safetensors'."
    )


def _check_index(folder: Path, shards: tuple[Shard, ...], placed: dict[str, str]) -> None:
    """Raises where the index and the shards disagree, or two shards hold one name."""
    seen: dict[str, str] = {}
    faults = []
    for shard in shards:
        for entry in shard.header.entries:
            if entry.name in seen:
                faults.append(f"{entry.name} stands in both {seen[entry.name]} and {shard.file}")
            seen[entry.name] = shard.file
    for name, file in placed.items():
        if seen.get(name) != file:
            faults.append(
                f"{name} should stand in {file} and {'stands in ' + seen[name] if name in seen else 'is in no shard'}"
            )
    if faults:
        raise WeightsError(
            f"The shards in {folder} do not fit {INDEX}: {'; '.join(faults)}. Download all of them again from one place."
        )
