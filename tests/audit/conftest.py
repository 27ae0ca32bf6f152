import jax
import pytest

import jaxinterp as ji
from jaxinterp import tasks


@pytest.fixture(scope="module")
def lm(shared):
    return ji.load(shared / "stories260k")


@pytest.fixture(scope="module")
def pairs(lm):
    """Pairs of two lengths, so that one is padded."""
    made = tasks.pronouns(jax.random.key(0), 4, lm.tokenizer, templates=[0, 5])
    assert made.is_padded
    return made
