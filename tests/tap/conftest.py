"""One tiny model for all tests of the tap: three layers, grouped heads, learned positions."""

from types import SimpleNamespace

import pytest

from tests.tiny import make_model, make_params, make_tokens


@pytest.fixture(scope="session")
def tiny():
    model = make_model(n_key_value_heads=2)
    return SimpleNamespace(model=model, params=make_params(model), tokens=make_tokens(), forward=model.forward)
