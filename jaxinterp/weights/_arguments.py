"""What `LanguageModel` accepts, checked before anything is compiled."""

import math
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


def check_sampling(max_new_tokens: Any, temperature: Any, key: Any, seed: Any) -> None:
    """Refuses settings of `LanguageModel.generate` that are not legal, or that would be ignored.

    Raises:
        InputError: which setting, and what to give instead.
    """
    if not is_whole(max_new_tokens) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens!r} is not legal: give a whole number, at least 1.")
    try:
        legal = 0 <= temperature < math.inf
    except (TypeError, ValueError):
        legal = False
    if not legal:
        raise InputError(
            f"temperature = {temperature!r} is not legal: give 0 for the most likely token, or a number above."
        )
    if seed is not None and not is_whole(seed):
        raise InputError(f"seed = {seed!r} is not legal: give a whole number.")
    if temperature == 0 and (key is not None or seed is not None):
        given = "key" if key is not None else f"seed = {seed}"
        raise InputError(
            f"{given} does nothing with temperature = 0, which takes the most likely token each time. Leave it out, or "
            "give a temperature above 0 to sample."
        )
    if key is not None and seed is not None:
        raise InputError(f"key and seed = {seed} were both given, and a key needs no seed: give one of them.")
