"""Penzai's transformers: paths, axes, and what cannot be tapped."""

import jax
import jax.numpy as jnp
import pytest
from penzai import pz

import jaxinterp as ji
from tests.guests.conftest import TOKENS, D, llama, neox
from tests.tiny import check_close, check_same

PARTS = {
    "TransformerBlock.*.input_to_query.Linear": "attn.q",
    "TransformerBlock.*.input_to_value": "attn.v",
    "TransformerBlock.*.Softmax": "attn.pattern",
    "TransformerBlock.*.attn_value_to_output.NamedEinsum": "attn.z",
    "TransformerBlock.*.Residual.0": "resid_mid",
    "LogitsHead": "logits",
}


def test_parts_of_attention_have_our_axes():
    """Two key/value heads with two query heads each: the weighted values and the output are computed again by hand."""
    paths = {k: v for k, v in PARTS.items() if v != "logits"}
    model = llama()
    forward, params = ji.guests.from_penzai(model, paths, inputs={"TransformerBlock.*": "resid_pre"})
    table = ji.sites(forward, params, TOKENS)
    assert {s.name: (s.axes, s.stacked_shape) for s in table} == {
        "resid_pre": ("BTD", (2, 2, 4, D)), "attn.q": ("BTHE", (2, 2, 4, 4, 4)), "attn.v": ("BTKE", (2, 2, 4, 2, 4)),
        "attn.pattern": ("BHTS", (2, 2, 4, 4, 4)), "attn.z": ("BTHE", (2, 2, 4, 4, 4)), "resid_mid": ("BTD", (2, 2, 4, D)),
    }  # fmt: skip
    acts = jax.jit(lambda p, t: ji.run(forward, ji.capture("*"))(p, t)[1])(params, TOKENS)
    by_head = jnp.repeat(acts["attn.v"], 2, axis=3)
    check_close(acts["attn.z"], jnp.einsum("lbhts,lbshe->lbthe", acts["attn.pattern"], by_head, precision="highest"))
    weights = params["transformer/block_1/attention/output.weights"].value
    weights = weights.unwrap("head_groups", "query_heads", "projection", "embedding").reshape(4, 4, D)
    write = jnp.einsum("bthe,hed->btd", acts["attn.z"][1], weights, precision="highest")
    check_close(acts["resid_mid"][1], acts["resid_pre"][1] + write)
    without = ji.run(forward, ji.zero("attn.z", layer=1, head=3), ji.capture("resid_mid"))
    got = jax.jit(lambda p, t: without(p, t)[1]["resid_mid"])(params, TOKENS)
    lost = jnp.einsum("bte,ed->btd", acts["attn.z"][1, :, :, 3], weights[3], precision="highest")
    check_close(got[1], acts["resid_mid"][1] - lost)


def test_faults_of_paths_are_reported_together():
    with pytest.raises(ji.InputError) as caught:
        ji.guests.from_penzai(
            llama(),
            {
                "TransformerBlok.*": "a", "TransformerBlock.*.Attenton": "b", "TransformerBlock.*.Residual": "c",
                "TransformerBlock.Attention": "d", "TransformerBlock.*.Softmax.*": "e", "LMHead.metadata": "f", "Residual.7": "g",
            },
        )  # fmt: skip
    text = str(caught.value)
    assert "'TransformerBlok' in 'TransformerBlok.*'. Did you mean 'TransformerBlock'" in text
    assert "'Attenton' in 'TransformerBlock.*.Attenton'. Did you mean 'Attention'" in text
    assert "'Residual' in 'TransformerBlock.*.Residual' means 2 layers" in text
    assert "'TransformerBlock' in 'TransformerBlock.Attention' means 2 layers" in text
    assert "more than one *" in text and "Residual.7 in 'Residual.7': there are 4" in text
    with pytest.raises(ji.InputError, match="use_layer_stack=False"):
        ji.guests.from_penzai(llama(use_layer_stack=True), {"TransformerBlock.Attention": "attn.out"})
    with pytest.raises(ji.InputError, match="give a layer of penzai"):
        ji.guests.from_penzai(lambda x: x)


def test_a_layer_of_ones_own_and_a_named_group():
    @pz.pytree_dataclass
    class Halve(pz.nn.Layer):
        def __call__(self, x, **side_inputs):
            return ji.guests.tap_named(side_inputs["tap"], "half", x * 0.5)

    model = neox()
    grown = pz.select(model).at_instances_of(pz.nn.EmbeddingLookup).insert_after(pz.nn.NamedGroup("mine", [Halve()]))
    forward, params = ji.guests.from_penzai(grown, {"mine": "same", "EmbeddingLookup": "embed"})
    acts = jax.jit(lambda p, t: ji.run(forward, ji.add("embed", 1.0), ji.capture("*"))(p, t)[1])(params, TOKENS)
    check_same(acts["half"], acts["same"])
    check_close(acts["half"], acts["embed"] * 0.5)


def test_positions_go_in_as_a_side_input():
    """Of two rows of padding and two tokens, the last logits are those of the tokens alone."""
    forward, params = ji.guests.from_penzai(llama())
    positions = pz.nx.wrap(jnp.array([[-1, -1, 0, 1]] * 2), "batch", "seq")
    padded = jnp.concatenate([jnp.zeros((2, 2), jnp.int32), TOKENS[:, :2]], 1)
    both = jax.jit(lambda p: (forward(p, padded, token_positions=positions), forward(p, TOKENS[:, :2])))
    got, want = both(params)
    check_close(got[:, 2:], want)


def test_a_value_that_is_no_array():
    @pz.pytree_dataclass
    class Twice(pz.nn.Layer):
        def __call__(self, x, **side_inputs):
            return x, x

    model = pz.nn.Sequential([Twice(), pz.nn.Identity()])
    forward, params = ji.guests.from_penzai(model, {"Twice": "pair"})
    with pytest.raises(ji.SiteTypeError, match="'pair': the value is a tuple"):
        forward(params, TOKENS)
