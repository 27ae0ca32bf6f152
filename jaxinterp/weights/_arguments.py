"""What `LanguageModel` accepts, checked before anything is compiled."""

import itertools
import math
from typing import Any

import numpy as np

from jaxinterp._errors import InputError, TokenError


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


def check_sampling(
    max_new_tokens: Any,
    temperature: Any,
    key: Any,
    seed: Any,
    top_k: Any = None,
    top_p: Any = None,
    d_vocab: Any = math.inf,
) -> None:
    """Refuses settings of `LanguageModel.generate` that are not legal, or that would be ignored.

    Raises:
        InputError: which setting, and what to give instead.
    """
    if not is_whole(max_new_tokens) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens!r} is not legal: give a whole number, at least 1.")
    if not _is_number(temperature) or temperature < 0:
        raise InputError(
            f"temperature = {temperature!r} is not legal: give 0 for the most likely token, or a number above."
        )
    if seed is not None and not is_whole(seed):
        raise InputError(f"seed = {seed!r} is not legal: give a whole number.")
    if top_k is not None and not (is_whole(top_k) and 1 <= top_k <= d_vocab):
        raise InputError(f"top_k = {top_k!r} is not legal: give a whole number from 1 to the vocabulary's {d_vocab}.")
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise InputError(f"top_p = {top_p!r} is not legal: give a number above 0 and at most 1.")
    given = {"key": key, "seed": seed, "top_k": top_k, "top_p": top_p}
    idle = [name if name == "key" else f"{name} = {value}" for name, value in given.items() if value is not None]
    if temperature == 0 and idle:
        raise InputError(
            f"{' and '.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing with temperature = 0, which takes the most "
            "likely token each time. Leave it out, or give a temperature above 0 to sample."
        )
    if key is not None and seed is not None:
        raise InputError(f"key and seed = {seed} were both given, and a key needs no seed: give one of them.")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, ValueError):
        return False


def stops(stop: Any, d_vocab: int) -> tuple[list[int], list[str]]:
    """The ids and the texts at which generation ends.

    Raises:
        InputError: neither a text nor an id, or an empty text.
        TokenError: ids that the model does not have.
    """
    one = isinstance(stop, str) or not hasattr(stop, "__iter__")
    many = [] if stop is None else [stop] if one else list(stop)
    wrong = [item for item in many if item == "" or not (isinstance(item, str) or is_whole(item))]
    if wrong:
        raise InputError(f"stop has {wrong!r}: give texts of at least one character, or token ids.")
    ids, texts = [int(i) for i in many if not isinstance(i, str)], [text for text in many if isinstance(text, str)]
    if outside := [i for i in ids if not 0 <= i < d_vocab]:
        raise TokenError(f"stop has ids {outside}, outside the vocabulary of {d_vocab}: legal are 0 to {d_vocab - 1}.")
    return ids, texts


def cut(text: str, prompt: str, stops: list[str]) -> str:
    """A text up to the first of `stops` behind its prompt."""
    same = (a == b for a, b in zip(text, prompt, strict=False))
    start = sum(itertools.takewhile(bool, same))  # less than the prompt where its end cuts a character in two
    found = [at for stop in stops if (at := text.find(stop, start)) >= 0]
    return text[: min(found)] if found else text
