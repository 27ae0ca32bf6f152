"""The forward pass against a plain numpy transformer, and that padding, reading and splitting change nothing."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models import block, embed, unembed
from jaxinterp.nn import KeyValues
from tests.nn.test_mlp import FORMULAS
from tests.nn.test_rotary import by_complex_numbers
from tests.tiny import FAMILIES, check_close, check_same, make_model, make_params, make_tokens

TOKENS = make_tokens(length=6)

CONFIGS = {
    "gpt2": dict(act_fn="gelu_new", tie_word_embeddings=True),
    "llama": dict(
        normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu", gated_mlp=True, n_key_value_heads=2,
        attention_bias=False, attention_output_bias=False, mlp_bias=False,
    ),
    "llama 3.1": dict(
        normalization_type="RMS", positional_embedding_type="rotary", n_key_value_heads=1, tie_word_embeddings=True,
        rotary_scaling=ji.RotaryScaling(kind="llama3", factor=8.0, original_n_ctx=16), rotary_base=100.0,
    ),
    "partly rotary, other outputs": dict(
        positional_embedding_type="rotary", rotary_dim=2, rotary_base=50.0, d_vocab_out=5, unembed_bias=True, attn_scale=3.0,
        rotary_scaling=ji.RotaryScaling(kind="linear", factor=2.0), eps=0.1,
    ),
    "attention only": dict(attn_only=True, d_mlp=None, normalization_type=None, positional_embedding_type="none"),
    "encoder": dict(attention_dir="bidirectional", act_fn="relu", final_norm=False, mlp_bias=False),
    **{name: FAMILIES[name] for name in ("gpt_neox", "gptj", "mistral", "gemma2", "gemma3_text", "olmo2", "bert")},
}  # fmt: skip


@functools.cache
def case(name):
    model = make_model(**CONFIGS[name])
    return model, make_params(model), jax.jit(model.forward)


def turned(x, frequencies):
    """RoPE of one head, [T, E]."""
    return by_complex_numbers(x[None, :, None], np.arange(len(x))[None], frequencies)[0, :, 0]


def parts(tree):
    """The first layer, and the rest."""
    return tuple(jax.tree.map(lambda a: a[part], tree) for part in (slice(0, 1), slice(1, 3)))  # noqa: B023


def numpy_forward(c, params, tokens):
    """One example at a time, in float64, without any of our functions."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    stream = []

    def norm(x, w, here=True, kind=c.normalization_type):
        if kind is None or not here or w is None:
            return x
        x = x - x.mean(-1, keepdims=True) if kind == "LN" else x
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + c.eps)
        return x / scale * (w["w"] + c.norm_weight_offset) + w.get("b", 0.0)

    def heads(x, attn, letter, layer):
        """Queries, keys or values [T, heads, E], normalized and turned."""
        y = np.einsum("td,hde->the", x, attn[f"W_{letter}"]) + attn.get(f"b_{letter}", 0.0)
        if letter == "V":
            return y
        if c.qk_norm == "head":
            y = norm(y, attn[f"{letter.lower()}_norm"], kind="RMS")
        if c.qk_norm == "all":
            weight = {"w": attn[f"{letter.lower()}_norm"]["w"].reshape(-1)}
            y = norm(y.reshape(len(y), -1), weight, kind="RMS").reshape(y.shape)
        if c.positional_embedding_type == "rotary":
            angles = c.frequencies(local=c.is_local[layer])
            order = np.arange(c.d_head)
            if c.rotary_adjacent_pairs:  # the same rotation, with the pairs pulled apart and put back
                n = 2 * len(angles)
                order = np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2), np.arange(n, c.d_head)])
            for head in range(y.shape[1]):
                y[:, head, order] = turned(y[:, head, order], angles)
        return y

    def attention(x, layer, i):
        attn = layer["attn"]
        h = norm(x, layer.get("ln1"), c.norm_position in ("pre", "sandwich"))
        q, k, v = (heads(h, attn, letter, i) for letter in "QKV")
        write = np.zeros_like(x)
        for head in range(c.n_heads):
            group = head // (c.n_heads // c.key_value_heads)
            s = q[:, head] @ k[:, group].T / (c.attn_scale or np.sqrt(c.d_head))
            s = s if c.attn_scores_soft_cap is None else c.attn_scores_soft_cap * np.tanh(s / c.attn_scores_soft_cap)
            if c.attention_dir == "causal":
                s = np.where(np.tri(len(x)), s, -np.inf)
            if c.is_local[i]:
                s = np.where(np.tri(len(x), k=-c.window_size), -np.inf, s)
            w = np.exp(s - s.max(-1, keepdims=True))
            write += w / w.sum(-1, keepdims=True) @ v[:, group] @ attn["W_O"][head]
        return norm(write + attn.get("b_O", 0.0), layer.get("ln1_post"))

    def mlp(x, layer):
        m = layer["mlp"]
        h = norm(x, layer.get("ln1" if c.shared_norm else "ln2"), c.norm_position in ("pre", "sandwich"))
        pre = h @ m["W_in"] + m.get("b_in", 0)
        act = FORMULAS[c.act_fn]
        post = act(h @ m["W_gate"] + m.get("b_gate", 0)) * pre if c.gated_mlp else act(pre)
        return norm(post @ m["W_out"] + m.get("b_out", 0), layer.get("ln2_post"))

    out, after = [], c.norm_position == "post"
    for row in np.asarray(tokens):
        x = p["embed"]["W_E"][row] * c.embed_scale
        x = x + (p["embed"]["W_pos"][: len(row)] if c.positional_embedding_type == "standard" else 0)
        x = x + (p["embed"]["W_token_type"][0] if c.n_token_types else 0)
        x = norm(x, p["embed"].get("ln"))
        stream.append([x])
        for i in range(c.n_layers):
            layer = jax.tree.map(lambda a: a[i], p["blocks"][0])  # noqa: B023
            if c.parallel_attn_mlp:
                x = x + attention(x, layer, i) + mlp(x, layer)
            else:
                x = norm(x + attention(x, layer, i), layer.get("ln1"), after)
                x = x if c.attn_only else norm(x + mlp(x, layer), layer.get("ln2"), after)
            stream[-1].append(x)
        x = norm(x, p.get("ln_final")) if c.final_norm else x
        if c.mlm_head:
            x = norm(FORMULAS[c.act_fn](x @ p["mlm_head"]["W"] + p["mlm_head"]["b"]), p["mlm_head"]["ln"])
        logits = x @ (p["embed"]["W_E"].T if c.tie_word_embeddings else p["unembed"]["W_U"])
        logits = logits + (p["unembed"]["b_U"] if c.unembed_bias else 0)
        cap = c.output_logits_soft_cap
        out.append(logits if cap is None else cap * np.tanh(logits / cap))
    return np.stack(out), np.swapaxes(np.array(stream), 0, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_forward_pass_is_the_formula(name):
    model, params, forward = case(name)
    logits, stream = numpy_forward(model.config, params, TOKENS)
    check_close(forward(params, TOKENS), logits)
    acts = jax.jit(ji.run(model.forward, ji.capture("resid_pre", "resid_post")))(params, TOKENS)[1]
    check_close(acts["resid_pre"], stream[:-1])
    check_close(acts["resid_post"], stream[1:])


@pytest.mark.parametrize("name", CONFIGS)
def test_params_have_the_promised_shapes(name):
    model, params, _ = case(name)
    made = model.init(jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), made) == jax.tree.map(
        lambda a: (a.shape, a.dtype), model.param_shapes()
    )
    assert jax.tree.structure(made) == jax.tree.structure(params)
    attn = made["blocks"][0]["attn"]
    width = model.config.d_head
    assert attn["W_Q"].shape == (3, 4, 8, width) and attn["W_O"].shape == (3, 4, width, 8)
    assert attn["W_K"].shape == (3, model.config.key_value_heads, 8, width)
    if "mlp" in made["blocks"][0]:
        assert made["blocks"][0]["mlp"]["W_in"].shape == (3, 8, 12)
    assert ("unembed" in made) == (not model.config.tie_word_embeddings or model.config.unembed_bias)
    check_same(jax.tree.leaves(made)[0], jax.tree.leaves(model.init(jax.random.key(0)))[0])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *itertools.product(["gpt2", "llama", "encoder"], ["left", "right", "both"]),
        *((name, "both") for name in ("gptj", "gemma3_text", "olmo2", "bert")),
    ],
)
def test_padding_changes_nothing_at_real_positions(name, side):
    model, params, forward = case(name)
    pad = {"left": (3, 0), "right": (0, 3), "both": (2, 1)}[side]
    padded = jnp.pad(TOKENS, ((0, 0), pad), constant_values=9)
    mask = jnp.pad(jnp.ones(TOKENS.shape, bool), ((0, 0), pad))
    want = forward(params, TOKENS)
    keep = slice(pad[0], pad[0] + 6)
    masked = forward(params, padded, mask=mask)
    check_close(masked[:, keep], want)
    assert np.isfinite(masked).all()
    wild = jnp.where(mask, padded, 10_000)  # whatever stands at padding, an id of no token too
    check_close(forward(params, wild, mask=mask)[:, keep], want)


def test_examples_of_several_lengths_share_a_batch():
    model, params, forward = case("llama")
    mask = jnp.array([[False, False, True, True, True, True], [True, True, True, True, True, False]])
    got = forward(params, TOKENS, mask=mask)
    check_close(got[0, 2:], forward(params, TOKENS[:1, 2:])[0])
    check_close(got[1, :5], forward(params, TOKENS[1:, :5])[0])


def test_reading_rows_and_answers_is_indexing():
    model, params, forward = case("partly rotary, other outputs")
    whole = forward(params, TOKENS)
    check_close(forward(params, TOKENS, read=jnp.array([[5, 0]])), whole[:, np.array([5, 0])])
    check_close(forward(params, TOKENS, read=jnp.array([[5], [2]]))[:, 0], jnp.stack([whole[0, 5], whole[1, 2]]))
    answers = jnp.array([[4, 1], [0, 0]])
    check_close(forward(params, TOKENS, answers=answers), jnp.stack([whole[0][:, answers[0]], whole[1][:, answers[1]]]))
    check_close(
        forward(params, TOKENS, read=jnp.array([[5]]), answers=answers)[:, 0],
        jnp.stack([whole[0, 5, answers[0]], whole[1, 5, answers[1]]]),
    )
    tied, tied_params, tied_forward = case("gpt2")
    check_close(
        tied_forward(tied_params, TOKENS, answers=answers),
        np.stack([tied_forward(tied_params, TOKENS)[b][:, answers[b]] for b in range(2)]),
    )


def test_an_edit_of_what_is_read_finds_its_position():
    model, params, _ = case("gpt2")
    read = jnp.array([[5, 1]])
    acts = lambda h, **kw: ji.run(model.forward, h, ji.capture("final.in"))(params, TOKENS, **kw)[1]["final.in"]
    whole = acts(ji.zero("final.in", position=1))
    check_close(acts(ji.zero("final.in", position=1), read=read), whole[:, np.array([5, 1])])
    assert not whole[:, 1].any()
    value = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    check_same(acts(ji.patch("final.in", value), read=read), np.broadcast_to(value[[5, 1]], (2, 2, 8)))


def test_every_value_of_a_block_that_is_read_in_part_is_found_by_its_position():
    model, params, _ = case("gemma3_text")
    weights, data = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], (params["blocks"][0], model.layer_data()[0]))
    x, positions = model.embed(params, TOKENS, positions=jnp.arange(6)[None]), jnp.arange(6)[None]

    def part(read):
        at = dict(positions=positions, extent=6)
        return lambda x, *, tap: model.block(weights, data, x, positions=positions, read=read, tap=tap.at(**at))

    names = [site.name for site in ji.sites(part(None), x)]
    assert {"attn.q_norm_scale", "attn.k_rot", "attn.pattern", "mlp.post_norm_scale", "resid_post"} <= set(names)
    look = [ji.run(part(read), ji.capture(*names, position=[1, 5])) for read in (None, jnp.array([[5, 1]]))]
    found = jax.jit(lambda x: [run(x)[1] for run in look])(x)
    for name in names:
        check_close(found[1][name], found[0][name])


def test_given_positions_shift_what_depends_on_them():
    model, params, forward = case("llama")
    shifted = forward(params, TOKENS, positions=jnp.arange(4, 10)[None])
    check_close(shifted, forward(params, TOKENS), 1e-4)  # RoPE sees distances only
    model, params, forward = case("gpt2")
    assert jnp.abs(forward(params, TOKENS, positions=jnp.arange(4, 10)[None]) - forward(params, TOKENS)).max() > 1e-2
    assert np.isnan(forward(params, TOKENS, positions=jnp.arange(7, 13)[None])[:, -1]).all()  # the context has 12


def test_the_parts_make_the_whole():
    model, params, forward = case("llama")
    positions, data = jnp.arange(6)[None], jax.tree.map(jnp.asarray, model.layer_data()[0])
    x = model.embed(params, TOKENS, positions=positions)
    check_same(x, embed(model.config, params, TOKENS, positions=positions))

    @jax.jit
    def layer(i, x):
        weights, here = jax.tree.map(lambda a: a[i], (params["blocks"][0], data))
        out, kv = block(model.config, weights, here, x, positions=positions)
        read, _ = model.block(weights, here, x, positions=positions, read=jnp.array([[4, 2]]))
        prefix = KeyValues(kv.keys[:, :4], kv.values[:, :4], positions[:, :4])
        rest, own = model.block(weights, here, x[:, 4:], positions=positions[:, 4:], prefix=prefix)
        return out, kv, read, rest, own

    for i in range(3):
        x, kv, read, rest, own = layer(i, x)
        check_close(read, x[:, np.array([4, 2])])
        check_close(rest, x[:, 4:])
        check_close(own.values, kv.values[:, 4:])
    check_close(unembed(model.config, params, x), forward(params, TOKENS))


def test_layers_from_a_cache():
    model, params, _ = case("gpt2")
    positions = jnp.arange(6)[None]
    x = model.embed(params, TOKENS, positions=positions)
    whole, _ = model.layers(params, x, positions=positions)
    _, caches = model.layers(params, x[:, :4], positions=positions[:, :4])
    rest, _ = model.layers(params, x[:, 4:], positions=positions[:, 4:], prefixes=caches)
    check_close(rest, whole[:, 4:])


@pytest.mark.parametrize("name", ["gpt2", "llama", "partly rotary, other outputs"])
def test_bfloat16_parameters_give_float32_logits(name, bfloat16_products):
    model, params, forward = case(name)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    logits, acts, _ = jax.jit(ji.run(model.forward, ji.capture("resid_post", "attn.scores")))(low, TOKENS)
    assert (
        logits.dtype == jnp.float32
        and acts["resid_post"].dtype == jnp.bfloat16
        and acts["attn.scores"].dtype == jnp.float32
    )
    check_close(logits, forward(params, TOKENS), 0.1)
    if model.config.d_vocab_out is None:
        f = functools.partial(ji.models.generate, model, max_new_tokens=2)
        assert jax.eval_shape(f, low, TOKENS).shape == (2, 8)  # every dtype is checked while tracing


def test_two_segments_are_one_stack():
    """Mixed stacks come later; the loop over segments is there now."""
    model, params, forward = case("llama")

    split = params | {"blocks": parts(params["blocks"][0])}
    other = dataclasses.replace(model, layer_data_fn=lambda config: parts(ji.models.layer_data(config)[0]))
    handlers = (
        ji.zero("attn.z", layer=2, head=1),
        ji.add("resid_pre", 1.0, layer=0),
        ji.capture("resid_post"),
        ji.statistics("mlp.pre"),
    )
    got = jax.jit(ji.run(other.forward, *handlers))(split, TOKENS)
    jax.tree.map(check_close, got, jax.jit(ji.run(model.forward, *handlers))(params, TOKENS))
    generated = [
        jax.jit(functools.partial(ji.models.generate, m, max_new_tokens=3))(p, TOKENS)
        for m, p in ((other, split), (model, params))
    ]
    check_same(*generated)


def test_an_own_block_is_a_field():
    def frozen(config, params, data, x, **how):
        out, kv = block(config, params, data, x, **how)
        return x, kv

    model, params, _ = case("gpt2")
    other = dataclasses.replace(model, block_fn=frozen)
    x = model.embed(params, TOKENS, positions=jnp.arange(6)[None])
    check_close(other.forward(params, TOKENS), model.unembed(params, x))
    assert other != model


BAD = [
    (make_tokens(vocab=3) + 9, {}, ji.TokenError, r"\[11\] are outside the vocabulary of 11"),
    (-make_tokens(), {}, ji.TokenError, "outside the vocabulary"),
    (jnp.zeros((2, 13), jnp.int32), {}, ji.TokenError, "13 tokens are more than the model's context of 12"),
    (jnp.zeros((2, 0), jnp.int32), {}, ji.TokenError, "empty"),
    (jnp.zeros((2, 3)), {}, ji.InputError, "float32"),
    (jnp.zeros((3,), jnp.int32), {}, ji.InputError, r"\[batch, position\]"),
    (TOKENS, dict(mask=jnp.ones((2, 5), bool)), ji.InputError, r"\[2, 6\]"),
    (TOKENS, dict(mask=jnp.ones((2, 6))), ji.InputError, "booleans"),
    (TOKENS, dict(mask=jnp.array([[True] * 6, [False] * 6])), ji.TokenError, "no real token"),
]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_an_own_unembedding_has_all_parameters(dtype):
    seen = {}

    def looking(config, params, x, **how):
        seen.update(jax.tree.map(lambda leaf: leaf.dtype, params))
        return unembed(config, params, x, **how)

    model = dataclasses.replace(make_model(compute_dtype=dtype), unembed_fn=looking)
    params = make_params(model)
    jax.eval_shape(model.forward, params, TOKENS)
    assert jax.tree.structure(seen) == jax.tree.structure(params)
    blocks, head, norm = seen["blocks"][0]["attn"]["W_Q"], seen["unembed"]["W_U"], seen["ln_final"]["w"]
    assert (blocks, head, norm) == ("float32", dtype or "float32", "float32")


@pytest.mark.parametrize(("tokens", "how", "kind", "message"), BAD, ids=[b[3][:20] for b in BAD])
def test_bad_tokens_are_an_error(tokens, how, kind, message):
    from jaxinterp.models import check_tokens

    with pytest.raises(kind, match=message):
        check_tokens(make_model().config, tokens, how.get("mask"))


def test_a_forward_checks_its_tokens():
    model, params, forward = case("gpt2")
    with pytest.raises(ji.TokenError, match="outside"):
        model.forward(params, TOKENS + 6)
    for bad in (11, -1):
        out = forward(params, TOKENS.at[0, 2].set(bad))  # traced: no error can be raised
        assert np.isnan(out[0, 2:]).all() and np.isfinite(out[1]).all()


def test_token_types_are_refused():
    model, params, _ = case("gpt2")
    with pytest.raises(ji.InputError, match="token types"):
        model.forward(params, TOKENS, token_types=TOKENS)
