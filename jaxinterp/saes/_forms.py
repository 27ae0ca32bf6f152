"""The forms of files, and where a dictionary lies: which folder, which form. A form of other people is one entry of `FORMS`."""

from __future__ import annotations

from pathlib import Path

from jaxinterp._errors import ConfigError, InputError, MissingFileError, SaveError, WeightsError, closest
from jaxinterp.saes import _dictionary_learning, _gemma_scope, _own, _saelens, _sparsify
from jaxinterp.saes._form import Form
from jaxinterp.weights import fetch_files

OWN = "jaxinterp"
FORMS: dict[str, Form] = {
    "saelens": _saelens.FORM,
    "gemma_scope": _gemma_scope.FORM,
    "dictionary_learning": _dictionary_learning.FORM,
    "sparsify": _sparsify.FORM,
}
"""Other people's forms, by name. Our own is "jaxinterp"."""
WEIGHTS = {OWN: _own.WEIGHTS, **{name: form.weights for name, form in FORMS.items()}}
"""The file of each form by which a folder is recognized."""
SITE = "site.json"
"""Where a form tells the site by the names of its folders alone, this file beside its own tells it too; others do not read it."""
FILES = {_own.CONFIG, SITE, *WEIGHTS.values(), *(file for form in FORMS.values() for file in form.files)}
"""All that a folder of any form may hold, beside our `source/`."""


def find_folder(folder_or_hub_id: str | Path, subfolder: str | None, revision: str | None) -> tuple[Path, str]:
    """The local folder of a dictionary, fetched from the hub where there is none of that name; and where it lies, in words.

    Raises:
        MissingFileError: no such folder, or no such repository.
        ConfigError: a revision of a local folder was asked for.
    """
    path, inner = Path(folder_or_hub_id).expanduser(), subfolder or "."
    if path.is_file():
        raise MissingFileError(f"{path} is a file. Give the folder that holds it: {str(path.parent)!r}.")
    if path.is_dir() or len(Path(str(folder_or_hub_id)).parts) != 2:
        if revision is not None:
            raise ConfigError(f"revision = {revision!r} is for repositories of the hub; {path} is a local folder.")
        if not (path / inner).is_dir():
            raise MissingFileError(
                f"There is no folder {path / inner}, and a repository of the hub is named 'owner/name'. Check the path from "
                f"{Path.cwd()}."
            )
        return path / inner, (path / inner).resolve().as_posix()
    start = "" if subfolder is None else f"{subfolder.strip('/')}/"
    hint = "Published dictionaries often lie in a folder of their repository: load(name, subfolder=...)."
    name = str(folder_or_hub_id)
    found = fetch_files(
        name, revision, [start + file for file in sorted({*FILES, f"{_own.SOURCE}/*"})], "dictionary", hint
    )
    return found / inner, f"{name}/{subfolder or ''}".rstrip("/")


def form_of(folder: Path, form: str | None) -> str:
    """The form that a folder has, by the files in it; the given one, if it has that.

    Raises:
        MissingFileError: none, or not that one.
        ConfigError: several.
        WeightsError: the weights are there as a pickle alone.
        InputError: there is no form of that name.
    """
    if form is not None and form not in WEIGHTS:
        raise InputError(f"form = {form!r} is not known. {closest(form, WEIGHTS)}")
    found = [name for name, weights in WEIGHTS.items() if (folder / weights).is_file() and form in (None, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{folder} holds dictionaries of the forms {', '.join(found)}: choose one by form=...")
    for name, table in FORMS.items():
        if table.pickle and (folder / table.pickle).is_file() and form in (None, name):
            raise WeightsError(_pickle_message(folder / table.pickle, table.weights))
    found = [path.parent for w in WEIGHTS.values() for depth in range(1, 4) for path in folder.glob("*/" * depth + w)]
    inside = sorted({path.relative_to(folder).as_posix() for path in found})
    hint = f" There are dictionaries in {', '.join(inside[:5])}: give subfolder=..." if inside else ""
    wanted = ", ".join(f"{weights} ({name})" for name, weights in WEIGHTS.items() if form in (None, name))
    raise MissingFileError(f"{folder} holds no dictionary that is understood: there is no {wanted}.{hint}")


def _pickle_message(path: Path, weights: str) -> str:
    return (
        f"{path} is a pickle, which can run any program when it is opened, so jaxinterp never opens one. Convert it once, in an "
        "environment with torch and safetensors:\n"
        '  python -c "import torch; from safetensors.torch import save_file; '
        f"d = torch.load('{path}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.contiguous() for k, v in d.items()}}, '{path.parent / weights}')\"\n"
        "and load the folder again."
    )


def check_replaceable(folder: Path) -> None:
    """Raises unless all that a folder holds is a dictionary, so that nothing else is ever deleted."""
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in held if name not in FILES and name != _own.SOURCE]
    if others or (held and not set(held) & set(WEIGHTS.values())):
        raise SaveError(
            f"{folder} holds {', '.join((others or held)[:5])}, so it is not a dictionary alone, and overwrite=True would delete "
            "that. Nothing was written. Choose another folder, or empty this one first."
        )
