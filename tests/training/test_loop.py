"""The loop and the loss: a model learns, a run can be taken up again, a diverged one stops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxinterp as ji
from jaxinterp import training


@pytest.fixture(scope="module")
def setting():
    config = ji.TransformerConfig(n_layers=1, d_model=16, n_ctx=8, n_heads=2, d_head=8, d_vocab=7, d_mlp=16)
    model = ji.Model(config=config)
    optimizer = training.adamw(3e-3)
    step = training.train_step(lambda p, batch, key: training.next_token_loss(model, p, batch), optimizer)
    batch = jnp.tile(jnp.arange(7, dtype=jnp.int32), (4, 1))
    return step, training.init_state(model.init(jax.random.key(0)), optimizer), batch, model


def test_it_learns_and_its_history_says_so(setting):
    step, state, batch, model = setting
    seen = []
    new, history = training.fit(
        step,
        state,
        itertools.repeat(batch, 60),
        key=jax.random.key(0),
        every=25,
        report=lambda s, row: seen.append(row),
    )
    assert [row["step"] for row in history] == [25, 50, 60] and seen == history
    assert history[0]["loss"] > 1.0 and history[-1]["loss"] < 0.3
    assert (model.forward(new.params, batch)[:, :-1].argmax(-1) == batch[:, 1:]).all()
    assert int(state.step) == 0 and np.isfinite(np.asarray(state.params["embed"]["W_E"])).all()


def test_a_run_in_two_parts_is_the_run(setting):
    step, state, batch, _ = setting
    key = jax.random.key(5)
    whole, _ = training.fit(step, state, itertools.repeat(batch, 6), key=key)
    first, _ = training.fit(step, state, itertools.repeat(batch, 4), key=key)
    second, history = training.fit(step, first, itertools.repeat(batch, 2), key=key)
    assert history[0]["step"] == 6
    jax.tree.map(np.testing.assert_array_equal, whole.params, second.params)


def test_a_loss_that_is_not_finite_stops_the_run():
    step = training.train_step(
        lambda p, batch, key: ((loss := jnp.sum(p["W_a"]) * batch), {"loss": loss}), optax.sgd(1.0)
    )
    state = training.init_state({"W_a": jnp.ones(1)}, optax.sgd(1.0))
    with pytest.raises(ji.InputError, match="step 2"):
        training.fit(step, state, iter([jnp.float32(1.0), jnp.float32(np.nan)]), key=jax.random.key(0), every=1)


def test_the_loss_weighs_what_it_is_told_to(setting):
    _, state, batch, model = setting
    tokens = batch.at[0, 3].set(0)
    logits = model.forward(state.params, tokens[:, :-1])
    chosen = np.zeros((4, 6), np.float32)
    chosen[0, 2] = 1.0
    loss, _ = training.next_token_loss(model, state.params, tokens, weights=jnp.asarray(chosen))
    expected = -jax.nn.log_softmax(logits[0, 2])[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    full, _ = training.next_token_loss(model, state.params, tokens)
    np.testing.assert_allclose(full, training.token_nats(logits, tokens[:, 1:]).mean(), rtol=1e-5)


def test_one_token_is_nothing_to_predict(setting):
    _, state, batch, model = setting
    with pytest.raises(ji.InputError, match="two tokens"):
        training.next_token_loss(model, state.params, batch[:, :1])
