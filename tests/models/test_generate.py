"""Generation against repeated full forwards, edits and padding included."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import generate
from tests.tiny import check_close, check_same, make_model, make_params, make_tokens

TOKENS = make_tokens(length=4)
NEW = 5
T = 4 + NEW  # and T - 1 of them are read

CONFIGS = {
    "learned": {},
    "rotary": dict(
        positional_embedding_type="rotary", normalization_type="RMS", n_key_value_heads=2, gated_mlp=True, act_fn="silu"
    ),
}


@functools.cache
def case(name):
    model = make_model(**CONFIGS[name])
    return model, make_params(model)


@functools.partial(jax.jit, static_argnums=0)
def _padded_forward(model, params, tokens, mask, handlers):
    return ji.run(model.forward, *handlers)(params, tokens, mask=mask)[0]


def by_full_forwards(model, params, tokens, handlers=lambda length: (), new=NEW):
    """Each token from a whole forward over all that came before; room for the rest is masked, so one compile serves all."""
    total = tokens.shape[1] + new
    while tokens.shape[1] < total:
        length = tokens.shape[1]
        room = ((0, 0), (0, total - length))
        mask = jnp.pad(jnp.ones(tokens.shape, bool), room)
        logits = _padded_forward(model, params, jnp.pad(tokens, room), mask, handlers(length))[:, length - 1]
        tokens = jnp.concatenate([tokens, jnp.argmax(logits, -1).astype(jnp.int32)[:, None]], 1)
    return tokens


def greedy(model, params, tokens, *handlers, new=NEW, **how):
    f = jax.jit(lambda p, t, h: ji.run(functools.partial(generate, model, max_new_tokens=new), *h)(p, t, **how))
    return f(params, tokens, handlers)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_generation_is_repeated_forwards(name):
    model, params = case(name)
    want = by_full_forwards(model, params, TOKENS)
    check_same(greedy(model, params, TOKENS)[0], want)
    check_same(greedy(model, params, TOKENS, new=1)[0], want[:, :5])
    assert len(set(np.asarray(want[:, 4:]).ravel().tolist())) > 2  # no constant


VECTOR = np.random.default_rng(2).normal(size=8).astype(np.float32) * 4


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("position", [2, 3, 4, 6, T - 2])
def test_an_edit_acts_at_its_position_once_that_is_there(name, position):
    model, params = case(name)
    edit = ji.add("resid_mid", VECTOR, layer=1, position=np.int32(position))
    want = by_full_forwards(model, params, TOKENS, lambda length: (edit,) if position < length else ())
    got, acts, _ = greedy(model, params, TOKENS, edit, ji.capture("resid_mid"))
    check_same(got, want)
    plain = greedy(model, params, TOKENS, ji.capture("resid_mid"))
    seen = lambda a: np.concatenate(
        [a["prompt/resid_mid"], np.moveaxis(a["resid_mid"][:, :, :, 0], 0, 2)], 2
    )  # [L, B, T-1, D]
    moved = np.abs(seen(acts) - seen(plain[1])).max((0, 1, 3))
    assert seen(acts).shape == (3, 2, T - 1, 8)
    assert moved[:position].max(initial=0) < 1e-5 and moved[position] > 1e-2
    if position >= 4:  # only what was chosen before it is sure to be the same
        check_same(got[:, : position + 1], plain[0][:, : position + 1])


def test_the_captures_of_steps_are_those_of_a_full_forward():
    model, params = case("rotary")
    handlers = (
        ji.zero("attn.z", layer=1, head=2),
        ji.capture("resid_post", "attn.z"),
        ji.capture("mlp.out", layers=[1], prefix="one/"),
    )
    tokens, acts, _ = greedy(model, params, TOKENS, *handlers)
    _, whole, _ = jax.jit(ji.run(model.forward, *handlers))(params, tokens[:, :-1])
    assert acts["resid_post"].shape == (NEW - 1, 3, 2, 1, 8) and acts["one/mlp.out"].shape == (NEW - 1, 1, 2, 1, 8)
    for name in ("resid_post", "attn.z", "one/mlp.out"):
        check_close(acts["prompt/" + name], whole[name][:, :, :4])
        check_close(jnp.moveaxis(acts[name][:, :, :, 0], 0, 2), whole[name][:, :, 4:])


def test_a_patch_of_a_whole_run_finds_its_rows():
    model, params = case("learned")
    donor = jax.jit(ji.run(model.forward, ji.capture("resid_mid")))(params, make_tokens(length=T - 1, seed=8))[1][
        "resid_mid"
    ]
    patch = ji.patch("resid_mid", per_layer=donor, layer=1, position=[1, 5])
    acts = greedy(model, params, TOKENS, patch, ji.capture("resid_mid"))[1]
    check_close(acts["prompt/resid_mid"][1, :, 1], donor[1, :, 1], 0)
    check_close(acts["resid_mid"][1, 1, :, 0], donor[1, :, 5], 0)
    short = ji.patch("resid_mid", per_layer=donor[:, :, :4], layer=1)  # the prompt's rows: steps are left alone
    acts = greedy(model, params, TOKENS, short, ji.capture("resid_mid"))[1]
    check_close(acts["prompt/resid_mid"][1], donor[1, :, :4], 0)
    assert np.abs(acts["resid_mid"][0, 1, :, 0] - donor[1, :, 3]).max() > 1e-3


def test_positions_that_are_never_read_are_an_error_or_nan():
    model, params = case("learned")
    run = lambda *h: greedy(model, params, TOKENS, *h)
    run(ji.zero("attn.z", position=T - 2))
    where = lambda p: ji.tap.place(ji.zero("attn.z"), position=p)
    for bad in (T - 1, T, 40):  # the last token is chosen and never read
        with pytest.raises(ji.SiteIndexError, match=str(T - 1)):
            ji.run(functools.partial(generate, model, max_new_tokens=NEW), where(bad))(params, TOKENS)
        with pytest.raises(ji.SiteIndexError, match=str(T - 1)):
            ji.run(functools.partial(generate, model, max_new_tokens=NEW), ji.capture("attn.z", position=bad))(
                params, TOKENS
            )
        check_same(run(where(bad))[0][:, 4:], np.full((2, NEW), -1))  # traced: the logits are NaN, and -1 is no token


def test_nan_weights_give_no_token():
    model, params = case("learned")
    broken = params | {"ln_final": {"w": params["ln_final"]["w"].at[0].set(jnp.nan), "b": params["ln_final"]["b"]}}
    check_same(greedy(model, broken, TOKENS)[0][:, 4:], np.full((2, NEW), -1))
    sampled = generate(model, broken, TOKENS, max_new_tokens=2, temperature=1.0, key=jax.random.key(0))
    check_same(sampled[:, 4:], np.full((2, 2), -1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_continue_as_alone(name, side):
    model, params = case(name)
    tokens = np.array(make_tokens(length=6, seed=3))
    lengths, rows = [3, 6], []
    mask = np.array([[t < n if side == "right" else t >= 6 - n for t in range(6)] for n in lengths])
    edit = ji.add("resid_mid", VECTOR, layer=1, position=np.int32(4))
    got = np.asarray(greedy(model, params, jnp.where(mask, tokens, 77), edit, mask=jnp.asarray(mask))[0])
    for b, n in enumerate(lengths):
        alone = jnp.asarray(tokens[b][mask[b]])[None]
        rows = by_full_forwards(model, params, alone, lambda length: (edit,) if length > 4 else ())
        check_same(got[b, 6:], rows[0, n:])
        check_same(got[b, :6][mask[b]], alone[0])


def test_sampling_is_deterministic_by_key():
    model, params = case("rotary")
    f = jax.jit(
        lambda key, temperature: generate(model, params, TOKENS, max_new_tokens=NEW, temperature=temperature, key=key)
    )
    first = f(jax.random.key(0), 1.0)
    check_same(first, f(jax.random.key(0), 1.0))
    assert (first != f(jax.random.key(1), 1.0)).any()
    check_same(f(jax.random.key(0), 1e-4), greedy(model, params, TOKENS)[0])
    assert len(np.unique(np.asarray(f(jax.random.key(0), 100.0))[:, 4:])) > 4


def test_samples_follow_the_softmax():
    model, params = case("rotary")
    many = jnp.tile(TOKENS[:1], (4000, 1))
    drawn = np.asarray(generate(model, params, many, max_new_tokens=1, temperature=2.0, key=jax.random.key(5)))[:, -1]
    p = np.asarray(jax.nn.softmax(model.forward(params, TOKENS[:1])[0, -1] / 2.0), np.float64)
    counts = np.bincount(drawn, minlength=11)
    assert (((counts - 4000 * p) ** 2) / (4000 * p)).sum() < 35  # chi squared, 10 degrees: p < 1e-4


def test_generation_compiles_once_for_every_step(count_compiles):
    model, params = case("learned")
    f = jax.jit(functools.partial(generate, model, max_new_tokens=3))
    f(params, TOKENS)
    with count_compiles() as compiles:
        f(params, TOKENS + 1 - 1)
    assert compiles.count("generate") == 0
    jaxprs = [str(jax.make_jaxpr(functools.partial(generate, model, max_new_tokens=n))(params, TOKENS)) for n in (3, 7)]
    sizes = [len(re.findall(r" = \w+", text)) for text in jaxprs]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (dict(max_new_tokens=9), ji.TokenError, "4 tokens and 9 new ones"),
        (dict(max_new_tokens=0), ji.InputError, "at least 1"),
        (dict(max_new_tokens=2, temperature=1.0), ji.InputError, "needs both"),
        (dict(max_new_tokens=2, key=jax.random.key(0)), ji.InputError, "key with temperature=0, which takes"),
        (dict(max_new_tokens=2, temperature=-1.0, key=jax.random.key(0)), ji.InputError, "temperature=-1.0"),
        (dict(max_new_tokens=2, mask=jnp.zeros((2, 4), bool)), ji.TokenError, "no real token"),
    ],
)
def test_what_generation_refuses(how, kind, message):
    model, params = case("learned")
    with pytest.raises(kind, match=message):
        generate(model, params, TOKENS, **how)


def test_models_that_predict_no_next_token():
    encoder = make_model(attention_dir="bidirectional")
    with pytest.raises(ji.InputError, match="bidirectional"):
        generate(encoder, None, TOKENS, max_new_tokens=2)
    with pytest.raises(ji.InputError, match="d_vocab_out"):
        generate(make_model(d_vocab_out=5), None, TOKENS, max_new_tokens=2)
