"""Processed weights give the same log-probabilities, in every family where a step applies, and are refused elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.weights import applicable, process
from tests.tiny import FAMILIES, check_close, check_same, make_model, make_params, make_tokens

LN_BARE = dict(attention_bias=False, attention_output_bias=False, mlp_bias=False)
RMS = dict(
    normalization_type="RMS", gated_mlp=True, act_fn="silu", positional_embedding_type="rotary", n_key_value_heads=2
)
KINDS = {
    **FAMILIES,
    "without biases": LN_BARE,
    "gated LN": LN_BARE | dict(gated_mlp=True),
    "attention only": dict(attn_only=True, d_mlp=None),
    "no norms": dict(normalization_type=None),
}
ALL = ("fold_norms", "fold_value_biases", "center_writing_weights", "center_unembedding")
_BIASES, _MEAN = {"fold_value_biases": "attention_bias=False"}, {"center_writing_weights": "normalization_type='RMS'"}
_CAP = {"center_unembedding": "output_logits_soft_cap=4.0"}
WITHOUT = {  # what is refused, and what the message says
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma", "phi3"), _BIASES | _MEAN),
    **dict.fromkeys(("gemma2", "gemma3_text"), _BIASES | _MEAN | _CAP),
    "qwen2": _MEAN,
    "olmo2": {"fold_norms": "norm_position='output'", **_BIASES, **_MEAN},
    "bert": {"fold_norms": "norm_position='post'"},
    "no norms": {"fold_norms": "no norms", "center_writing_weights": "normalization_type=None"},
}


def log_probabilities(model, params, tokens):
    return jax.nn.log_softmax(forward(model, params, tokens))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.forward(params, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_stay(kind):
    model = make_model(**KINDS[kind])
    params, tokens = make_params(model), make_tokens()
    steps = applicable(model.config)
    assert steps == tuple(step for step in ALL if step not in WITHOUT.get(kind, {}))
    new, config = process(params, model.config)
    after = ji.Model(config=config)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, after.param_shapes())
    check_close(log_probabilities(after, new, tokens), log_probabilities(model, params, tokens), 1e-4)
    for step, reason in WITHOUT.get(kind, {}).items():
        with pytest.raises(ji.InputError, match=reason):
            getattr(ji.weights, step)(params, model.config)


@pytest.mark.parametrize("step", ALL)
def test_each_step_alone_does_what_it_says(step):
    model = make_model(**KINDS["gpt2"])
    params, tokens = make_params(model), make_tokens()
    new, config = getattr(ji.weights, step)(params, model.config)
    assert (config.tie_word_embeddings, config.unembed_bias) == (step == "fold_value_biases", step == "fold_norms")
    check_close(log_probabilities(ji.Model(config=config), new, tokens), log_probabilities(model, params, tokens), 1e-4)
    (block,) = new["blocks"]
    if step == "fold_norms":
        check_same(block["ln1"]["w"], np.ones((3, 8)))
        check_same(block["ln2"]["b"], np.zeros((3, 8)))
        assert abs(block["attn"]["W_Q"].mean(-2)).max() < 1e-6 and abs(new["unembed"]["W_U"].mean(0)).max() < 1e-6
    if step == "fold_value_biases":
        check_same(block["attn"]["b_V"], np.zeros((3, 4, 4)))
    if step == "center_writing_weights":
        written = (block["attn"]["W_O"], block["attn"]["b_O"], block["mlp"]["W_out"], block["mlp"]["b_out"])
        assert all(abs(w.mean(-1)).max() < 1e-6 for w in (*written, new["embed"]["W_E"], new["embed"]["W_pos"]))
    if step == "center_unembedding":
        assert abs(new["unembed"]["W_U"].mean(-1)).max() < 1e-6


def test_the_offset_of_norms_stays_in_the_config():
    model = make_model(**KINDS["gemma2"])
    new, config = ji.weights.fold_norms(make_params(model), model.config)
    assert config.norm_weight_offset == 1.0
    check_same(new["blocks"][0]["ln1"]["w"], np.zeros((3, 8)))
    assert abs(new["blocks"][0]["ln1_post"]["w"]).max() > 0.1


def test_what_is_refused_would_have_changed_the_model():
    """The reasons hold: a soft cap, a final norm that is absent, the mean that RMSNorm reads."""
    for changes, step in [
        (dict(output_logits_soft_cap=2.0), "center_unembedding"),
        (dict(final_norm=False), "center_writing_weights"),
        (RMS, "center_writing_weights"),
    ]:
        model = make_model(**changes)
        params, tokens = make_params(model), make_tokens()
        with pytest.raises(ji.InputError, match="would change what this model computes"):
            process(params, model.config, steps=[step])
        taken = (
            make_model() if step != "center_unembedding" else make_model(**changes | {"output_logits_soft_cap": None})
        )
        forced, _ = getattr(ji.weights, step)(params, taken.config)
        before, after = (log_probabilities(model, p, tokens) for p in (params, forced))
        assert abs(before - after).max() > 1e-2


def test_dtypes_stay_and_unknown_steps_are_told():
    model = make_model(**LN_BARE)
    new, _ = process(make_params(model, dtype=jnp.bfloat16), model.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(ji.InputError, match="legal are fold_norms"):
        process(new, model.config, steps=["fold_ln"])


def test_nothing_is_changed_in_place():
    model = make_model()
    params = make_params(model)
    before = jax.tree.map(np.asarray, params)
    process(params, model.config)
    jax.tree.map(check_same, params, before)
