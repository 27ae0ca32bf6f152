"""Finding and loading the shipped models.

A model of the zoo is a checkpoint folder like any other, with its card as README.md, so that what works on it works on a
model of one's own. Checkpoints from along a training run are folders of the same kind inside it, named by their step.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxinterp import weights
from jaxinterp._errors import InputError, MissingFileError, closest
from jaxinterp.weights import LanguageModel

FOLDER = Path(__file__).parent / "checkpoints"
CARD, STEPS = "README.md", "steps"


def names() -> tuple[str, ...]:
    """The shipped models.

    Example:
        >>> import jaxinterp as ji
        >>> ji.zoo.names()
        ('induction', 'induction-1l', 'stories')
    """
    return tuple(sorted(folder.name for folder in FOLDER.iterdir() if (folder / "config.json").is_file()))


def steps(name: str) -> tuple[int, ...]:
    """The training steps from which a model's parameters are kept, in order; empty where only the last ones are.

    Args:
        name: one of `names()`.

    Example:
        >>> import jaxinterp as ji
        >>> ji.zoo.steps("induction")[0], ji.zoo.steps("stories")
        (0, ())
    """
    folder = path(name) / STEPS
    return tuple(sorted(int(step.name) for step in folder.iterdir())) if folder.is_dir() else ()


def path(name: str, *, step: int | None = None) -> Path:
    """The checkpoint folder of a shipped model, for whatever takes a folder.

    Args:
        name: one of `names()`.
        step: one of `steps(name)`; None: the trained model.

    Returns:
        A folder with config.json and model.safetensors; a tokenizer where the model reads text.

    Raises:
        InputError: no such model, or no such step.

    Example:
        >>> import jaxinterp as ji
        >>> ji.zoo.path("stories").name
        'stories'
    """
    if name not in names():
        raise InputError(f"the zoo has no model {name!r}. {closest(name, names())}")
    folder = FOLDER / name
    if step is None:
        return folder
    if step not in steps(name):
        kept = ", ".join(map(str, steps(name))) or "none, only the trained model: leave step out"
        raise InputError(f"step={step} of the zoo's {name!r} is not kept. Kept: {kept}.")
    return folder / STEPS / f"{step:04}"


def load(name: str, *, step: int | None = None, dtype: Any = jnp.float32) -> LanguageModel:
    """Loads a shipped model.

    Args:
        name: one of `names()`.
        step: one of `steps(name)`: the parameters as they were then; None: the trained model.
        dtype: of the parameters; they are kept in float32.

    Returns:
        The model, as `jaxinterp.load` gives it. Models of token ids alone have no tokenizer.

    Raises:
        InputError: no such model, or no such step.

    Example:
        >>> import jaxinterp as ji
        >>> ji.zoo.load("stories").predict("Once upon a", k=1)[0].token
        ' time'
    """
    return weights.load(path(name, step=step), dtype=dtype)


def card(name: str) -> str:
    """What a model was trained on and how, what it can do, and where it fails; Markdown.

    Args:
        name: one of `names()`.

    Raises:
        InputError: no such model.

    Example:
        >>> import jaxinterp as ji
        >>> print(ji.zoo.card("stories").splitlines()[0])
        # stories
    """
    file = path(name) / CARD
    if not file.is_file():
        raise MissingFileError(f"{file} is not there: the installation is incomplete. Install jaxinterp again.")
    return file.read_text(encoding="utf-8")
