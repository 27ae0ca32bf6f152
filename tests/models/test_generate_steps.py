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


def test_which_steps_is_data(count_compiles):
    """`under` takes handlers as arguments, so that their indices are traced: out of range there, no token is chosen."""
    under(add(step=slice(0, 1)))
    with count_compiles() as compiles:
        rows = [under(add(step=slice(*ends)))[0] for ends in ((0, 1), (1, 3), (None, None))]
        bad = [under(add(step=slice(*ends)))[0] for ends in ((3, 5), (4, None), (0, 9))]
    assert compiles.count("under") == 0
    assert len({np.asarray(row).tobytes() for row in rows}) > 1
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
    look = lambda fn, *handlers: jax.eval_shape(lambda: ji.run(fn, *handlers)(PARAMS, TOKENS))
    with pytest.raises(ji.UnvisitedSiteError, match="in a decoding step"):
        look(MODEL.forward, add(step=0))
    with pytest.raises(ji.UnvisitedSiteError, match="The prompt is no step"):
        look(functools.partial(generate, MODEL, max_new_tokens=1), add(step=slice(0, None)))
    look(functools.partial(generate, MODEL, max_new_tokens=2), add(step=0))


def filled(rows, stop):
    """Rows of tokens, each with its first stop token in place of all that follow."""
    rows = np.array(rows)
    for row in rows:
        at = 4 + np.flatnonzero(row[4:] == stop)
        row[at[0] if len(at) else len(row) :] = stop
    return rows


def test_stop_tokens_and_mixed_lengths_with_an_edit_by_step():
    plain = np.asarray(under(add(step=2))[0])
    stop = int(plain[0, 5])
    want = filled(plain, stop)
    assert (want[0] != plain[0]).any() and (want[1] != stop).any()
    check_same(under(add(step=2), stop=jnp.array([stop]))[0], want)
    first = int(plain[1, 4])  # chosen by the prompt, in no step
    assert (plain[1, 5:] != first).any()
    check_same(under(add(step=2), stop=jnp.array([first]))[0], filled(plain, first))
    mask = jnp.array([[False] * 1 + [True] * 3, [True] * 4])
    mixed = under(add(step=2), stop=jnp.array([stop]), mask=mask)[0]
    check_same(mixed[1], want[1])
    fn = ji.run(functools.partial(generate, MODEL, max_new_tokens=NEW), add(step=2))
    alone = jax.jit(fn)(PARAMS, TOKENS[:1, 1:])[0]
    check_same(mixed[:1, 4:], filled(np.pad(alone, ((0, 0), (1, 0))), stop)[:, 4:])


GEMMA = dict(
    positional_embedding_type="rotary", normalization_type="RMS", norm_position="sandwich", norm_weight_offset=1.0,
    window_size=3, attn_types=("local", "global", "local"), rotary_base_local=100.0, n_key_value_heads=1, gated_mlp=True,
    attn_scores_soft_cap=5.0, output_logits_soft_cap=9.0, embed_scale=2.0, qk_norm="head", act_fn="gelu_new",
)  # fmt: skip


def test_steps_are_a_full_forward_where_much_differs_by_layer():
    """One forward pass over what came out gives each of its tokens. (Every family's greedy tokens: `make parity`.)"""
    model = make_model(**GEMMA)
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
