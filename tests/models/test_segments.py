"""Several texts in one row of tokens: a packed forward pass is the forward passes of its texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp._errors import InputError
from jaxinterp.models._model import token_positions
from tests.tiny import FAMILIES, check_close, check_same, make_model, make_params, make_tokens

LENGTHS = [[5, 4, 3], [4, 3, 5], [3, 5]]  # the last row has four tokens of padding


def packed(lengths=LENGTHS, total=12):
    segments = np.full((len(lengths), total), -1, np.int32)
    positions = np.zeros((len(lengths), total), np.int32)
    for row, parts in enumerate(lengths):
        start = 0
        for i, n in enumerate(parts):
            segments[row, start : start + n], positions[row, start : start + n] = i, np.arange(n)
            start += n
    return jnp.asarray(segments), jnp.asarray(positions)


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "bert"])
def test_a_packed_forward_is_that_of_each_text(name):
    model = make_model(**FAMILIES[name])
    params, tokens = make_params(model), make_tokens(3, 12)
    segments, positions = packed()
    run = jax.jit(ji.run(model.forward, ji.capture("resid_post")))
    given = None if name == "gpt2" else positions
    logits, acts, _ = run(params, tokens, segments=segments, positions=given)
    got = np.asarray(acts["resid_post"])
    for row, parts in enumerate(LENGTHS):
        start = 0
        for n in parts:
            alone, one, _ = run(params, tokens[row : row + 1, start : start + n])
            check_close(logits[row, start : start + n], alone[0])
            check_close(got[:, row, start : start + n], one["resid_post"][:, 0])
            start += n


def test_positions_begin_again_with_each_text():
    segments, positions = packed()
    mask = segments >= 0
    got = token_positions(jnp.zeros_like(segments), mask, None, segments)
    check_same(got, jnp.where(mask, positions, -1))
    left = jnp.flip(segments, 1)[2:]  # padding in front
    got = token_positions(jnp.zeros_like(left), left >= 0, None, left)
    assert got[0].tolist() == [-1, -1, -1, -1, 0, 1, 2, 3, 4, 0, 1, 2]


def test_blocks_of_queries_know_segments():
    model = make_model(**(FAMILIES["llama"] | dict(n_ctx=600, n_layers=1)))
    params, tokens = make_params(model), make_tokens(1, 600)
    segments, positions = packed([[250, 350]], 600)
    got = jax.jit(model.forward)(params, tokens, segments=segments, positions=positions)
    check_close(got[:, 250:], jax.jit(model.forward)(params, tokens[:, 250:]))


def test_no_segments_is_the_same_program():
    model = make_model(**FAMILIES["llama"])
    params, tokens = make_params(model), make_tokens()
    with_name = jax.jit(lambda p, t: model.forward(p, t, segments=None)).lower(params, tokens).as_text()
    assert with_name == jax.jit(lambda p, t: model.forward(p, t)).lower(params, tokens).as_text()
    assert "cummax" not in with_name


@pytest.mark.parametrize("stop", [0, 2])
def test_the_stream_behind_some_blocks(stop):
    model = make_model(**FAMILIES["gemma2"])
    params, tokens = make_params(model), make_tokens()
    _, acts, _ = ji.run(model.forward, ji.capture("resid_pre", "resid_post"))(params, tokens)
    got, found, _ = ji.run(model.residual, ji.capture("embed"))(params, tokens, stop=stop)
    check_close(got, acts["resid_pre"][stop] if stop < 3 else acts["resid_post"][-1])
    assert found["embed"].shape == got.shape
    loops = jax.jit(lambda p, t: model.residual(p, t, stop=stop)).lower(params, tokens).as_text().count("while")
    assert (loops > 0) == (stop > 0)


def test_wrong_segments_and_stops():
    model = make_model(**FAMILIES["llama"])
    params, tokens = make_params(model), make_tokens()
    with pytest.raises(InputError, match=r"\[2, 5\].*\[2, 6\]"):
        model.residual(params, tokens, segments=jnp.zeros((2, 5), jnp.int32))
    with pytest.raises(InputError, match="stop=4.*3 layers"):
        model.residual(params, tokens, stop=4)
