"""What `LanguageModel` accepts, checked before anything is compiled."""

import itertools
from typing import Any

import numpy as np

from jaxinterp._errors import InputError


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's (True and False are not)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def id_array(prompt: Any) -> np.ndarray:
    """The token ids of a prompt that is not text, as integers [T] or [B, T].

    Raises:
        InputError: neither text nor integer ids of such a shape.
    """
    legal = "A prompt is text, or integer ids of shape [T] or [B, T]"
    if prompt is None or isinstance(prompt, (bytes, dict, set)):
        raise InputError(f"{legal}; got {prompt!r}.")
    try:
        ids = np.asarray(prompt)
    except ValueError as error:
        raise InputError(f"{legal}, so rows of equal length; got {prompt!r}.") from error
    ids = ids.astype(np.int32) if ids.size == 0 else ids
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{legal}; got {ids.dtype}{list(ids.shape)}.")
    return ids


def check_generation(max_new_tokens: Any, temperature: Any, key: Any, seed: Any) -> None:
    """Refuses what `LanguageModel.generate` has beside the settings of `models.Sampling`; all in one message.

    Raises:
        InputError: which argument, and what to give instead.
    """
    faults = []
    if not is_whole(max_new_tokens) or max_new_tokens < 1:
        faults.append(f"max_new_tokens={max_new_tokens!r} is not legal: give a whole number, at least 1")
    if seed is not None and not is_whole(seed):
        faults.append(f"seed={seed!r} is not legal: give a whole number")
    if seed is not None and key is not None:
        faults.append(f"key and seed={seed!r} were both given, and a key needs no seed: give one of them")
    elif seed is not None and temperature == 0:
        faults.append(
            f"seed={seed!r} with temperature=0, which takes the most probable token each time: leave it out, or give a "
            "temperature above 0"
        )
    if faults:
        raise InputError("; ".join(faults) + ".")


def stops(stop: Any) -> tuple[list[int], list[str]]:
    """The ids and the texts at which generation ends.

    Raises:
        InputError: neither a text nor an id, or an empty text.
    """
    one = isinstance(stop, str) or not hasattr(stop, "__iter__")
    many = [] if stop is None else [stop] if one else list(stop)
    wrong = [item for item in many if item == "" or not (isinstance(item, str) or is_whole(item))]
    if wrong:
        raise InputError(f"stop has {wrong!r}: give texts of at least one character, or token ids.")
    return [int(i) for i in many if not isinstance(i, str)], [text for text in many if isinstance(text, str)]


def cut(text: str, prompt: str, stops: list[str]) -> str:
    """A text up to the first of `stops` behind its prompt."""
    same = (a == b for a, b in zip(text, prompt, strict=False))
    start = sum(itertools.takewhile(bool, same))  # less than the prompt where its end cuts a character in two
    found = [at for stop in stops if (at := text.find(stop, start)) >= 0]
    return text[: min(found)] if found else text
