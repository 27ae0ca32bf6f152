"""Does a model call Lily "She" and Ben "He"? Twenty openings for every name, and the held-out stories themselves."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

TEMPLATES = (
    "{} was very happy.",
    "{} was sad.",
    "{} liked to play with toys.",
    "{} wanted to help.",
    "One day, {} went to the park.",
    "One day, {} found a red ball.",
    "One day, {} saw a big dog in the garden.",
    "One day, {} was playing in the garden. The sun was shining.",
    "Once upon a time, there was a child named {}.",
    "Once upon a time, there was a child named {}. {} loved to play outside.",
    "Once upon a time, {} lived in a small house near the forest.",
    "There was a child named {}. One day, {} went outside to play.",
    "Mom gave {} a cookie. {} smiled.",
    "Yesterday {} went to the beach with the dog.",
    "{} looked up at the sky.",
    "{} had a big box full of toys.",
    "At the end of the day, {} was tired.",
    "In the morning, {} woke up and ran to the kitchen.",
    "The cat sat next to {}. {} was not afraid.",
    "It was raining, so {} stayed at home.",
)
"""Each ends where a pronoun may begin the next sentence, and nothing but the name tells which."""

SHE, HE = " She", " He"


def count_names(stories: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """How often each name stands in the stories as a word."""
    words = Counter(re.findall(r"\b[A-Z][a-z]+\b", "\n".join(stories)))
    return {name: words[name] for name in names}


def prompts(name: str) -> list[str]:
    """The openings about one name."""
    return [template.format(name, name) for template in TEMPLATES]


def she_minus_he(lm, texts: Sequence[str]) -> np.ndarray:
    """Logit of " She" minus logit of " He" after each text."""
    import jax.numpy as jnp

    tokens, mask = lm.encode_padded(texts)
    last = jnp.full((1, 1), tokens.shape[1] - 1, jnp.int32)
    answers = jnp.tile(
        jnp.array([[lm.answer_token(texts[0], word) for word in (SHE, HE)]], jnp.int32), (len(tokens), 1)
    )
    logits = np.asarray(lm.model.forward(lm.params, tokens, mask=mask, read=last, answers=answers))
    return logits[:, 0, 0] - logits[:, 0, 1]


def accuracy(lm, she: Sequence[str], he: Sequence[str]) -> dict:
    """The fraction of openings after which the right pronoun is the likelier of the two, by name and over all.

    Returns:
        `"names"`: fraction by name; `"she"`, `"he"`: mean over the names of each; `"all"`: mean over all openings.
    """
    names = [*she, *he]
    gap = she_minus_he(lm, [text for name in names for text in prompts(name)]).reshape(len(names), -1)
    right = np.where(np.arange(len(names))[:, None] < len(she), gap > 0, gap < 0)
    by_name = {name: round(float(x), 4) for name, x in zip(names, right.mean(1), strict=True)}
    return {
        "she": float(right[: len(she)].mean()) if she else None,
        "he": float(right[len(she) :].mean()) if he else None,
        "all": float(right.mean()),
        "names": by_name,
    }


def in_stories(lm, rows: np.ndarray, weights: np.ndarray, *, chunk: int = 32) -> dict:
    """Wherever a story itself goes on with one of the two pronouns: is it the likelier one?"""
    import jax

    she, he = (lm.answer_token("One day.", word) for word in (SHE, HE))
    gap = jax.jit(lambda params, tokens: lm.model.forward(params, tokens)[..., [she, he]])
    counts = {she: [0, 0], he: [0, 0]}
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        padded = np.pad(part, ((0, chunk - len(part)), (0, 0)))
        both = np.asarray(gap(lm.params, padded[:, :-1]))[: len(part)]
        for token, column in ((she, 0), (he, 1)):
            here = (part[:, 1:] == token) & (weights[start : start + chunk] > 0)
            counts[token][0] += int((both[here][:, column] > both[here][:, 1 - column]).sum())
            counts[token][1] += int(here.sum())
    total = [counts[she][i] + counts[he][i] for i in (0, 1)]
    return {
        name: {"right": right, "of": of, "fraction": right / max(of, 1)}
        for name, (right, of) in (("she", counts[she]), ("he", counts[he]), ("all", total))
    }
