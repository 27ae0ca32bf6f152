"""A small model whose attention is far from uniform, prompts, and a metric."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji


@pytest.fixture(scope="session")
def small():
    """(model, params, base [3, 6], source [3, 6]): grouped-query, rotary, gated."""
    config = ji.TransformerConfig(
        n_layers=3, d_model=16, n_ctx=32, n_heads=4, n_key_value_heads=2, d_head=4, d_vocab=11, d_mlp=24, gated_mlp=True,
        act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary", initializer_range=0.6,
    )  # fmt: skip
    model = ji.Model(config=config)
    params = model.init(jax.random.key(0))
    base = jax.random.randint(jax.random.key(1), (3, 6), 0, 11)
    return model, params, base, jax.random.randint(jax.random.key(2), (3, 6), 0, 11)


CORRECT, WRONG, POSITION = np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([5, 5, 4])


@pytest.fixture(scope="session")
def difference():
    """The logit difference at position 5, 5 and 4 of the three prompts."""
    return ji.patching.logit_difference(CORRECT, WRONG, POSITION)


@pytest.fixture(scope="session")
def brute(small):
    """The loop that a sweep must equal: one full forward a cell, the edit by plain indexing. Gives logits [B, T, V].

    `change(value, source_value, *indices)`; layer and indices are traced, so that one compile serves the loop.
    """
    model, params, base, source = small
    acts = jax.jit(lambda t: ji.run(model.forward, ji.capture("*", "attn.pattern"))(params, t)[1])(source)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def forward(site, change, layer, indices):
        def edited(value, indices):
            return change(value, acts[site] if layer is None else acts[site][layer], *indices)

        return ji.run(model.forward, ji.edit(site, edited, indices, layer=layer))(params, base)[0]

    def logits(site, layer, change, *indices):
        return forward(site, change, None if layer is None else jnp.int32(layer), tuple(map(jnp.asarray, indices)))

    return logits


def read_difference(logits):
    """Logit differences [B], by plain indexing."""
    rows = np.asarray(logits)[np.arange(3), POSITION]
    return rows[np.arange(3), CORRECT] - rows[np.arange(3), WRONG]


@pytest.fixture(scope="session")
def measured():
    """`read_difference`, for tests."""
    return read_difference


def check_close(a, b, tolerance=1e-5):
    """Max abs difference over max abs value of the reference."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), jnp.finfo(jnp.float32).tiny)


@pytest.fixture(scope="session")
def check_same():
    """Asserts equality as the design defines it."""
    return check_close
