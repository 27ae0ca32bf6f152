"""Real tokenizers: GPT-2's (no BOS by default) and that of stories260k (BOS by default)."""

from pathlib import Path

import jax
import pytest

from jaxinterp.weights import Tokenizer


@pytest.fixture(scope="session")
def gpt2(shared: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared / "gpt2-tokenizer")


@pytest.fixture(scope="session")
def stories(shared: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared / "stories260k")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
