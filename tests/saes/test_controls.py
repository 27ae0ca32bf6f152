"""Controls: random dictionaries of the L0 asked for, models whose weights are shuffled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.saes import evaluate, random_dictionary, random_weights
from tests.saes.problems import ARCHITECTURES, make_config, make_rows
from tests.tiny import make_model, make_params


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_dictionaries_have_the_l0_asked_for_and_the_best_length(name):
    config = make_config(ARCHITECTURES[name], normalize="unit")
    rows = make_rows(n=512)
    is_topk = config.architecture.name == "topk"
    sae = random_dictionary(config, jax.random.key(0), rows, l0=None if is_topk else 4.0)
    seen = evaluate(sae, rows)
    assert seen.l0 == pytest.approx(config.architecture.k if is_topk else 4.0, rel=0.02)
    bias = np.asarray(sae.decode(jnp.zeros((1, 40))))
    added = np.asarray(sae(rows)) - bias
    error = lambda factor: np.square(rows - bias - factor * added).sum()
    assert error(1.0) <= min(error(0.9), error(1.1)) and error(1.0) < error(0.0)


def test_what_a_control_cannot_match_is_told():
    with pytest.raises(ji.InputError, match="above 0"):
        random_dictionary(make_config(ARCHITECTURES["relu_2024"]), jax.random.key(0), make_rows(), l0=40.0)
    with pytest.raises(ji.InputError, match="k=3"):
        random_dictionary(make_config(ARCHITECTURES["topk"]), jax.random.key(0), make_rows(), l0=4.0)
    with pytest.raises(ji.InputError, match="targets"):
        random_dictionary(make_config(ARCHITECTURES["topk"], "transcoder"), jax.random.key(0), make_rows())


def test_random_weights_keep_the_entries_of_each_matrix_and_layer():
    params = make_params(make_model())
    mixed = random_weights(params, jax.random.key(0), keep=("W_E",))
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mixed), strict=True):
        name, in_blocks = path[-1].key, path[0].key == "blocks"
        moved = name.startswith("W_") and name != "W_E" and old.ndim - in_blocks >= 2
        assert (np.asarray(old) != np.asarray(new)).any() == moved, path
        layers = zip(old, new, strict=True) if in_blocks else [(old, new)]
        for a, b in layers:
            np.testing.assert_array_equal(np.sort(a, axis=None), np.sort(b, axis=None))
