"""State dicts of TransformerLens: there and back, and all that tells one of another config. (Against itself: tests/parity.)"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.weights import from_transformer_lens, to_transformer_lens
from tests.tiny import check_close, check_same, make_model, make_params, make_tokens
from tests.weights.test_processing import KINDS, forward


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    model = make_model(**KINDS[kind])
    params = make_params(model)
    back = from_transformer_lens(to_transformer_lens(params, model.config), model.config)
    jax.tree.map(lambda a, b: check_close(a, b, 1e-6), back, params)


def test_names_shapes_and_what_is_always_there():
    model = make_model(tie_word_embeddings=True, n_key_value_heads=2, attention_bias=False)
    params = make_params(model)
    state = to_transformer_lens(params, model.config)
    (block,) = params["blocks"]
    check_same(state["blocks.2.attn._W_K"], block["attn"]["W_K"][2])
    check_same(state["pos_embed.W_pos"], params["embed"]["W_pos"])
    check_same(state["unembed.W_U"], params["embed"]["W_E"].T)
    check_same(state["blocks.0.attn._b_K"], np.zeros((2, 4)))
    assert len(state) == 4 + 2 + 3 * (4 + 4 + 4 + 4)


def test_names_of_grouped_queries_with_as_many_heads():
    model = make_model()
    params = make_params(model)
    state = to_transformer_lens(params, model.config)
    other = {
        n.replace(".W_K", "._W_K").replace(".W_V", "._W_V").replace(".b_K", "._b_K").replace(".b_V", "._b_V"): v
        for n, v in state.items()
    }
    assert set(other) != set(state)
    jax.tree.map(check_same, from_transformer_lens(other, model.config), params)


def test_a_gemma_has_its_offset_and_its_scale_in_the_weights():
    model = make_model(**KINDS["gemma2"])
    params = make_params(model)
    state = to_transformer_lens(params, model.config)
    check_close(state["blocks.1.ln1_post.w"], 1 + params["blocks"][0]["ln1_post"]["w"][1])
    check_close(state["embed.W_E"], params["embed"]["W_E"] * 8**0.5)
    check_same(state["unembed.W_U"], params["embed"]["W_E"].T)
    check_same(from_transformer_lens(state, model.config)["embed"]["W_E"], params["embed"]["W_E"])


def test_a_gated_mlps_bias_moves_behind_the_product():
    """There: (act(gate) * linear + b_in) W_out + b_out."""
    model = make_model(gated_mlp=True)
    params = make_params(model)
    with pytest.raises(ji.InputError, match=r"b_in and blocks.mlp.b_gate of a gated MLP are not zero"):
        to_transformer_lens(params, model.config)
    bare = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key in ("b_in", "b_gate") else leaf, params
    )
    state = to_transformer_lens(bare, model.config)
    bias = np.linspace(-1, 1, 12, dtype=np.float32)
    got = from_transformer_lens(state | {"blocks.1.mlp.b_in": bias}, model.config)["blocks"][0]["mlp"]
    check_close(got["b_out"][1], bare["blocks"][0]["mlp"]["b_out"][1] + bias @ np.asarray(state["blocks.1.mlp.W_out"]))
    check_same(got["b_in"], np.zeros((3, 12)))


def test_folded_norms_have_no_weights():
    model = make_model(**KINDS["llama"] | dict(norm_weight_offset=1.0))
    params, config = ji.weights.fold_norms(make_params(model), model.config)
    state = {name: value for name, value in to_transformer_lens(params, config).items() if "ln" not in name}
    back = from_transformer_lens(state, config)
    jax.tree.map(check_same, back["blocks"][0]["ln1"], params["blocks"][0]["ln1"])
    logits = forward(ji.Model(config=config), back, make_tokens())
    check_close(logits, forward(model, make_params(model), make_tokens()))


def test_every_difference_at_once():
    model = make_model(tie_word_embeddings=True, n_token_types=None)
    state = to_transformer_lens(make_params(model), model.config)
    del state["blocks.1.ln2.w"]
    state |= {
        "blocks.0.attn.sinks": np.zeros(4, np.float32),
        "blocks.2.mlp.W_in": np.zeros((8, 13), np.float32),
        "unembed.b_U": np.ones(11, np.float32),
        "unembed.W_U": state["unembed.W_U"] + 1,
        "blocks.0.attn.mask": np.zeros((0, 0), bool),
    }
    with pytest.raises(ji.WeightsError) as caught:
        from_transformer_lens(state, model.config)
    for part in (
        "1 missing: blocks.1.ln2.w",
        "1 unexpected: blocks.0.attn.sinks",
        "blocks.2.mlp.W_in is [8, 13], should be [8, 12]",
        "unembed.b_U is not zero, and the config has no such parameter",
        "unembed.W_U is not embed.W_E transposed, and the config has tie_word_embeddings=True",
    ):
        assert part in str(caught.value)
    assert "mask" not in str(caught.value)


def test_mixed_dtypes_and_what_is_no_array():
    model = make_model()
    state = to_transformer_lens(make_params(model), model.config)
    state["blocks.0.attn.W_Q"] = state["blocks.0.attn.W_Q"].astype(jnp.bfloat16)
    with pytest.raises(ji.WeightsError, match=r"dtypes are mixed.*bfloat16: blocks.0.attn.W_Q"):
        from_transformer_lens(state, model.config)
    with pytest.raises(ji.WeightsError, match="no floats"):
        from_transformer_lens({name: value.astype(np.int32) for name, value in state.items()}, model.config)

    class Sealed:
        def __array__(self, *_, **__):
            raise RuntimeError("on another device")

    with pytest.raises(ji.WeightsError, match=r"not readable by numpy.*Sealed: on another device"):
        from_transformer_lens(state | {"unembed.W_U": Sealed()}, model.config)


def test_dtypes():
    model = make_model()
    state = to_transformer_lens(make_params(model), model.config)
    for given, kept in [(np.float64, np.float32), (jnp.bfloat16, jnp.bfloat16), (np.float16, np.float16)]:
        params = from_transformer_lens({name: value.astype(given) for name, value in state.items()}, model.config)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(kept)}


def test_copies_and_rotations_are_compared():
    model = make_model(**KINDS["gptj"] | {"rotary_dim": 4})  # the first angle is 1 for every base
    state = to_transformer_lens(make_params(model), model.config)
    check_same(state["blocks.2.ln2.b"], state["blocks.2.ln1.b"])
    angles = np.repeat(model.config.frequencies(), 2)
    state |= {"blocks.0.attn.rotary_sin": np.sin(np.arange(12)[:, None] * angles).astype(np.float32)}
    from_transformer_lens(state, model.config)
    with pytest.raises(ji.WeightsError, match=r"blocks.1.ln2.w is not equal to blocks.1.ln1.w"):
        from_transformer_lens(state | {"blocks.1.ln2.w": state["blocks.1.ln2.w"] + 1}, model.config)
    other = dataclasses.replace(model.config, rotary_base=500.0)
    with pytest.raises(ji.WeightsError, match=r"blocks.0.attn.rotary_sin has other angles"):
        from_transformer_lens(state, other)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(n_token_types=2), "only its encoder"),
        (dict(embed_norm=True), "before the position embedding"),
        (dict(final_norm=False), "final_norm is False"),
        (dict(norm_position="post", embed_norm=True), "its encoder always has"),
    ],
)
def test_models_that_it_does_not_have(changes, reason):
    model = make_model(**changes)
    with pytest.raises(ji.InputError, match=reason):
        to_transformer_lens(make_params(model), model.config)
    with pytest.raises(ji.InputError, match=reason):
        from_transformer_lens({}, model.config)
