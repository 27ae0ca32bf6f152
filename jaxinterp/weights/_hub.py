"""Checkpoints of the Hugging Face hub, as folders of its cache: safetensors and JSON files alone are ever fetched."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from jaxinterp._errors import ConfigError, MissingFileError
from jaxinterp.weights._checkpoint import CONFIG, INDEX, SINGLE
from jaxinterp.weights._tokenizer import FILES

SMALL_FILES = (CONFIG, "generation_config.json", INDEX, *FILES)
_ZOO = "A model shipped with jaxinterp loads by jaxinterp.zoo.load(name); jaxinterp.zoo.names() lists them."
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_folder(folder_or_hub_id: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The local folder of a checkpoint, fetched from the hub where the name is not a folder.

    Returns:
        The folder, and the hub's commit (None for a local folder).

    Raises:
        MissingFileError: no such folder, no such model on the hub, or the hub is out of reach.
        ConfigError: a revision of a local folder was asked for.
    """
    path = Path(folder_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision = {revision!r} is for models of the hub; {path} is a local folder, which has only what is in it."
            )
        return path, None
    if path.is_file():
        raise MissingFileError(
            f"{path} is a file. Give the folder that holds it, with config.json and tokenizer.json beside it: "
            f"{str(path.parent)!r}."
        )
    name = str(folder_or_hub_id)
    if not _HUB_ID.fullmatch(name):
        raise MissingFileError(
            f"There is no folder {name!r}, and a model of the hub is named 'owner/model'. Check the path from {Path.cwd()}. "
            f"{_ZOO}"
        )
    folder = fetch_files(name, revision, SMALL_FILES)
    fetch_files(name, revision, _shards(folder))
    return folder, folder.name


def _shards(folder: Path) -> list[str]:
    """The weight files that a fetched index names, or the single one."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    try:
        return sorted({str(file) for file in json.loads((folder / INDEX).read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return [SINGLE]  # a broken index is reported when the folder is opened


def fetch_files(
    name: str, revision: str | None, patterns: Iterable[str], what: str = "model", hint: str = _ZOO
) -> Path:
    """The folder of the hub's cache with those files of a repository that match the patterns, fetched where they are missing.

    Args:
        name: "owner/name".
        revision: a commit, branch or tag; None: the newest.
        patterns: of file names. Name no pickles.
        what: what the repository holds, and `hint` what else may help, for messages.

    Raises:
        MissingFileError: there is no such repository, or the hub is out of reach.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise MissingFileError(
            f"There is no folder {name!r}, and the hub does not give a {what} of that name{_at(revision)}: "
            f"{_first_line(error)} A gated or private {what} needs `hf auth login` first. For a local one give "
            f"the path of its folder. {hint}"
        ) from error
    except Exception as error:  # no network in its many shapes: the clients' errors share no base
        raise MissingFileError(
            f"There is no folder {name!r}, and the hub could not be reached for a {what} of that name{_at(revision)} "
            f"({type(error).__name__}: {_first_line(error)}) Without a network, load a folder: on a machine with "
            f"one, run `hf download {name} --local-dir FOLDER`, copy FOLDER here, and load('FOLDER'). {hint}"
        ) from error


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
