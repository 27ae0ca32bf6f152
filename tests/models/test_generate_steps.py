"""Generation: edits by step, stop tokens, mixed lengths with all of it, every kind of block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import generate
from tests.tiny import check_close, check_same, make_model, make_params, make_tokens

MODEL = make_model()
PARAMS = make_params(MODEL)
TOKENS = make_tokens(length=4)
NEW = 5  # and 4 steps, which read positions 4 to 7
VECTOR = np.random.default_rng(2).normal(size=8).astype(np.float32) * 4
add = functools.partial(ji.add, "resid_mid", VECTOR, layer=1)
SEEN = ji.capture("resid_mid")


@jax.jit
def under(*handlers, **how):
    """Tokens and what each part of the run saw."""
    fn = functools.partial(generate, MODEL, max_new_tokens=NEW)
    out, acts, _ = ji.run(fn, *handlers, SEEN)(PARAMS, TOKENS, **how)
    return out, acts


@pytest.mark.parametrize(
    ("step", "position"), [(2, [6, 6]), ([0, 3], [4, 7]), (range(1, 3), [5, 6]), (slice(2, None), [6, 7])]
)
def test_a_step_is_the_position_of_its_token(step, position):
    """Edits by absolute position are held to repeated full forwards in `test_generate.py`."""
    got, want = under(add(step=step)), under(add(position=position))
    jax.tree.map(check_same, got, want)
    plain = under()
    check_same(got[1]["prompt/resid_mid"], plain[1]["prompt/resid_mid"])
    check_same(got[0][:, :5], plain[0][:, :5])
    assert (got[0] != plain[0]).any()


def test_every_step_is_the_continuation_without_the_prompt():
    got, want = under(add(step=slice(None, None))), under(add(position=[4, 5, 6, 7]))
    jax.tree.map(check_same, got, want)
    check_same(under(add(step=0, position=1))[0], under()[0])  # nothing is both


def test_which_steps_is_data(count_compiles):
    fn = functools.partial(generate, MODEL, max_new_tokens=NEW)
    f = jax.jit(lambda a, b: ji.run(fn, add(step=slice(a, b)))(PARAMS, TOKENS)[0])
    with count_compiles() as compiles:
        rows = [f(np.int32(a), np.int32(b)) for a, b in ((0, 1), (1, 3), (2, 4))]
        bad = [f(np.int32(a), np.int32(b)) for a, b in ((2, 2), (-1, 2), (3, 5), (4, 5))]
    assert compiles.count("<lambda>") == 1
    check_same(rows[1], under(add(step=range(1, 3)))[0])
    check_same(rows[2], under(add(step=slice(2, None)))[0])
    assert all((np.asarray(out)[:, 5:] == -1).all() for out in bad)


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        (4, ji.SiteIndexError, r"step=4 at site 'resid_mid', which has 4 steps: legal are 0 to 3"),
        ([0, 9], ji.SiteIndexError, "0 to 3"),
        (range(2, 6), ji.SiteIndexError, "steps 2 to 5 .* which has 4"),
        (slice(4, None), ji.SiteIndexError, "steps 4 to the last"),
        (-1, ji.SiteIndexError, "negative"),
        (slice(2, 2), ji.SiteIndexError, "selects nothing"),
        (range(0, 4, 2), ji.SiteIndexError, "list of the steps"),
        (1.0, ji.SiteTypeError, "integer"),
    ],
)
def test_steps_that_are_not_there(step, kind, message):
    with pytest.raises(kind, match=message):
        jax.eval_shape(
            lambda: ji.run(functools.partial(generate, MODEL, max_new_tokens=NEW), add(step=step))(PARAMS, TOKENS)
        )


def test_a_function_without_steps():
    with pytest.raises(ji.UnvisitedSiteError, match="in a decoding step"):
        ji.run(MODEL.forward, add(step=0))(PARAMS, TOKENS)
    with pytest.raises(ji.UnvisitedSiteError, match="The prompt is no step"):
        ji.run(functools.partial(generate, MODEL, max_new_tokens=1), add(step=slice(0, None)))(PARAMS, TOKENS)


def test_behind_its_stop_token_an_example_has_nothing_else():
    plain = np.asarray(under()[0])
    stop = int(plain[0, 5])
    want = plain.copy()
    for row in want:
        at = 4 + np.flatnonzero(row[4:] == stop)
        row[at[0] if len(at) else len(row) :] = stop
    assert (want[0] != plain[0]).any() and (want[1] != stop).any()
    check_same(under(stop=jnp.array([stop]))[0], want)
    check_same(under(stop=())[0], plain)


def test_mixed_lengths_with_an_edit_by_step_and_stop_tokens():
    tokens, lengths = np.asarray(make_tokens(length=6, seed=3)), [3, 6]
    mask = np.array([[t >= 6 - n for t in range(6)] for n in lengths])
    fn = ji.run(functools.partial(generate, MODEL, max_new_tokens=4), add(step=1))
    alone = [
        np.array(jax.jit(fn)(PARAMS, jnp.asarray(tokens[b][mask[b]])[None])[0][0, n:]) for b, n in enumerate(lengths)
    ]
    stop = alone[0][1]
    assert alone[0][2] != stop or alone[0][3] != stop
    for row in alone:
        at = np.flatnonzero(row == stop)
        row[at[0] if len(at) else len(row) :] = stop
    got = jax.jit(
        lambda: fn(PARAMS, jnp.asarray(np.where(mask, tokens, 77)), mask=jnp.asarray(mask), stop=[int(stop)])[0]
    )()
    check_same(got[:, 6:], alone)


BLOCKS = {
    "windows, two RoPE bases, sandwich norms, soft caps (Gemma)": dict(
        positional_embedding_type="rotary", normalization_type="RMS", norm_position="sandwich", norm_weight_offset=1.0,
        window_size=3, attn_types=("local", "global", "local"), rotary_base_local=100.0, n_key_value_heads=1, gated_mlp=True,
        attn_scores_soft_cap=5.0, output_logits_soft_cap=9.0, embed_scale=2.0, qk_norm="head", act_fn="gelu_new",
    ),
    "parallel, shared norm, part of the features turned in adjacent pairs (GPT-J)": dict(
        positional_embedding_type="rotary", rotary_dim=2, rotary_adjacent_pairs=True, parallel_attn_mlp=True, shared_norm=True,
    ),
    "norms behind sublayers and over all heads (OLMo 2)": dict(
        positional_embedding_type="rotary", normalization_type="RMS", norm_position="output", qk_norm="all", gated_mlp=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_steps_are_full_forwards_with_every_kind_of_block(name):
    """One forward pass over what came out gives each of its tokens, and the same values at an edited site."""
    model = make_model(**BLOCKS[name])
    params = make_params(model)
    edit = ji.add("attn.out", VECTOR, layer=1, position=[2, 5])
    fn = functools.partial(generate, model, max_new_tokens=NEW)
    out, acts = jax.jit(lambda p: ji.run(fn, edit, ji.capture("resid_post"))(p, TOKENS)[:2])(params)
    logits, whole = jax.jit(lambda p, t: ji.run(model.forward, edit, ji.capture("resid_post"))(p, t)[:2])(
        params, out[:, :-1]
    )
    check_same(jnp.argmax(logits[:, 3:], -1), out[:, 4:])
    check_close(jnp.moveaxis(acts["resid_post"][:, :, :, 0], 0, 2), whole["resid_post"][:, :, 4:])
    assert len(np.unique(np.asarray(out[:, 4:]))) > 2
