import dataclasses
import errno
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxinterp as ji
from jaxinterp._errors import InputError, SaveError, WeightsError
from jaxinterp.models import Model, RotaryScaling, TransformerConfig
from jaxinterp.weights import _safetensors

LINEAR = RotaryScaling(kind="linear", factor=2.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_folder(a: Path, b: Path) -> None:
    left, right = contents(a), contents(b)
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []


def test_a_trained_model_comes_back_byte_for_byte(shared, tmp_path):
    ji.save(ji.load(shared / "stories260k"), tmp_path / "copy")
    source = contents(shared / "stories260k")
    del source["golden.json"]
    assert contents(tmp_path / "copy") == source


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_comes_back_byte_for_byte(gpt2, tmp_path, bfloat16, prefix, dtype, shards):
    made = gpt2(prefix, tie_word_embeddings=shards == 1)
    made.cast(bfloat16 if dtype == "bfloat16" else dtype)
    for i in range(3):
        made.tensors[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
        made.tensors[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    if shards == 1:
        made.tensors["lm_head.weight"] = made.tensors[prefix + "wte.weight"].copy()
    folder = made.write(shards=shards)
    assert_same_folder(ji.save(ji.load(folder), tmp_path / "copy"), folder)


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}, {"num_key_value_heads": 6}],
)
def test_llama_comes_back_byte_for_byte(llama, tmp_path, changes):
    made = llama(**changes)
    folder = made.write()
    assert_same_folder(ji.save(ji.load(folder), tmp_path / "copy"), folder)


def test_mixed_dtypes_come_back(llama, tmp_path, bfloat16):
    made = llama().cast(bfloat16)
    made.tensors["model.norm.weight"] = made.tensors["model.norm.weight"].astype(np.float32)
    folder = made.write()
    with pytest.warns(UserWarning, match="several dtypes"):
        lm = ji.load(folder)
    assert_same_folder(ji.save(lm, tmp_path / "copy"), folder)


def test_changed_parameters_are_what_is_written(gpt2, tmp_path):
    made = gpt2()
    lm = ji.load(made.write())
    changed = dataclasses.replace(lm, params=jax.tree.map(lambda x: 2 * x, lm.params))
    tensors = safetensors.numpy.load_file(ji.save(changed, tmp_path / "copy") / "model.safetensors")
    assert set(tensors) == set(made.tensors)
    assert all(np.array_equal(tensors[name], 2 * made.tensors[name]) for name in tensors)


def test_rounding_is_never_silent(llama, tmp_path, bfloat16):
    made = llama(torch_dtype="bfloat16").cast(bfloat16)
    lm = ji.load(made.write(shards=2))
    changed = dataclasses.replace(lm, params=jax.tree.map(lambda x: x * 1.001, lm.params))
    with pytest.raises(WeightsError, match=r"float32 to BF16: .* and others.*dtype='float32'"):
        ji.save(changed, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    wide = ji.save(changed, tmp_path / "wide", dtype="float32")
    assert json.loads((wide / "config.json").read_text())["torch_dtype"] == "float32"
    total = json.loads((wide / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(value.size for value in made.tensors.values()) * 4
    back = ji.load(wide)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back.params, changed.params)))
    narrow = ji.load(ji.save(changed, tmp_path / "narrow", dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), changed.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, narrow.params, expected)))


def native(**changes):
    config = TransformerConfig(
        **{"n_layers": 2, "d_model": 8, "n_ctx": 16, "n_heads": 2, "d_head": 4, "d_vocab": 11, **changes}
    )
    model, rng = Model(config=config), np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape.shape).astype(np.float32))
    return ji.LanguageModel(model=model, params=jax.tree.map(draw, model.param_shapes()))


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_only": True, "normalization_type": None},
        {"d_mlp": 5, "tie_word_embeddings": True},
        {
            "d_mlp": 5,
            "gated_mlp": True,
            "n_key_value_heads": 1,
            "d_vocab_out": 3,
            "unembed_bias": True,
            "normalization_type": "RMS",
        },
        {"d_mlp": 5, "positional_embedding_type": "rotary", "precision": "high"},
    ],
)
def test_a_model_made_here_comes_back(tmp_path, changes):
    lm = native(**changes)
    folder = ji.save(lm, tmp_path / "made")
    back = ji.load(folder)
    assert back.config == lm.config and back.tokenizer is None and back.source["family"] == "jaxinterp"
    assert jax.tree.structure(back.params) == jax.tree.structure(lm.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back.params, lm.params)))
    assert_same_folder(ji.save(back, tmp_path / "again"), folder)
    names = safetensors.numpy.load_file(folder / "model.safetensors")
    assert names["blocks.attn.W_Q"].shape == (2, 2, 8, 4)


def test_our_own_layout_for_a_model_of_another_family(shared, tmp_path):
    lm = ji.load(shared / "stories260k")
    back = ji.load(ji.save(lm, tmp_path / "own", family="jaxinterp"))
    assert back.source["family"] == "jaxinterp" and back.config == lm.config
    assert back.tokenizer.encode("Once upon") == lm.tokenizer.encode("Once upon")
    assert np.array_equal(back.run_with_cache("Once upon", "logits")[0], lm.run_with_cache("Once upon", "logits")[0])
    with pytest.raises(InputError, match="family = 'opt' is not legal. Legal: 'gpt2', .*'llama', .*'jaxinterp'"):
        ji.save(lm, tmp_path / "x", family="opt")
    with pytest.raises(
        InputError, match="'gpt2' cannot say what this model is: .*gated_mlp is True and would be read as False"
    ):
        ji.save(lm, tmp_path / "x", family="gpt2")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"d_mlp": 5, "act_fn": "gelu_new", "tie_word_embeddings": True}),
        ("gpt2", {"d_mlp": 5, "act_fn": "relu", "attn_scale": 1.0, "precision": "default"}),
        ("gpt2", {"d_mlp": 5, "act_fn": "relu", "attn_scale": 2.0}),  # sqrt(d_head), which is the default
        ("llama", {"n_key_value_heads": 1, "rotary_scaling": LINEAR, "tie_word_embeddings": True}),
        ("llama", {"d_head": 6, "rotary_base": 500.0, "attention_bias": True, "attention_output_bias": True}),
    ],
)
def test_a_model_made_here_in_the_layout_of_a_family(tmp_path, family, changes):
    if family == "llama":
        llama_like = {"d_mlp": 5, "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS", "mlp_bias": False}
        llama_like |= {"positional_embedding_type": "rotary", "attention_bias": False, "attention_output_bias": False}
        changes = llama_like | changes
    lm = native(**changes)
    folder = ji.save(lm, tmp_path / "made", family=family)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    back = ji.load(folder, tokenizer=None)
    assert back.source["family"] == family
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back.params, lm.params)))
    tokens = jnp.array([[1, 2, 3]], jnp.int32)
    expected = lm.model.forward(lm.params, tokens)
    assert np.allclose(back.model.forward(back.params, tokens), expected, atol=1e-5)
    assert_same_folder(ji.save(back, tmp_path / "again"), folder)


def test_another_attention_scale_is_kept_or_refused(tmp_path):
    lm = native(d_mlp=5, act_fn="relu", attn_scale=3.0)
    with pytest.raises(InputError, match=r"attn_scale is 3\.0 and would be read as 2\.0"):
        ji.save(lm, tmp_path / "x", family="gpt2")
    back = ji.load(ji.save(lm, tmp_path / "own"))
    assert back.config.attn_scale == 3.0 and back.config.score_scale == 1 / 3


def test_values_that_a_dtype_cannot_hold(tmp_path):
    lm = native(d_mlp=5)
    lm.params["embed"]["W_E"] = lm.params["embed"]["W_E"].at[0, 0].set(1e6)
    with pytest.raises(WeightsError, match=r"embed\.W_E holds a value of size 1e\+06, too large for float16"):
        ji.save(lm, tmp_path / "x", dtype="float16")


def test_a_changed_config_is_not_written_as_what_it_was(shared, tmp_path):
    lm = ji.load(shared / "stories260k")
    changed = dataclasses.replace(lm, model=Model(config=dataclasses.replace(lm.config, rotary_base=5e3)))
    with pytest.raises(
        InputError, match=r"base is 5000\.0 and would be read as 10000\.0.*family='llama'.*='jaxinterp'"
    ):
        ji.save(changed, tmp_path / "x")
    assert ji.load(ji.save(changed, tmp_path / "z", family="llama")).config.rotary_base == 5e3
    assert ji.load(ji.save(changed, tmp_path / "x", family="jaxinterp")).config.rotary_base == 5e3
    faster = dataclasses.replace(lm, model=Model(config=dataclasses.replace(lm.config, precision="default")))
    ji.save(faster, tmp_path / "y")


def test_parameters_that_make_no_checkpoint(tmp_path):
    lm = native(d_mlp=5)
    block = dict(lm.params["blocks"][0])
    attn = {name: value for name, value in block["attn"].items() if name != "b_O"}
    wrong = {
        **lm.params,
        "blocks": ({**block, "attn": attn, "extra": jnp.ones(3)},),
        "ln_final": {"w": jnp.ones(7), "b": jnp.ones(8)},
    }
    with pytest.raises(WeightsError) as caught:
        ji.save(dataclasses.replace(lm, params=wrong), tmp_path / "x")
    for words in (
        "blocks.attn.b_O is missing",
        "blocks.extra is not of this model",
        "ln_final.w is [7], should be [8]",
    ):
        assert words in str(caught.value)
    nan = jax.tree.map(lambda x: x, lm.params)
    nan["embed"]["W_E"] = nan["embed"]["W_E"].at[0, 0].set(jnp.nan)
    with pytest.raises(WeightsError, match=r"embed\.W_E holds 1 NaN"):
        ji.save(dataclasses.replace(lm, params=nan), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_functions_of_its_own(tmp_path):
    lm = native(d_mlp=5)
    own = dataclasses.replace(lm.model, block_fn=lambda *a, **k: lm.model.block_fn(*a, **k))
    with pytest.raises(InputError, match="functions of its own"):
        ji.save(dataclasses.replace(lm, model=own), tmp_path / "x")


def test_what_is_there_is_kept_unless_it_is_a_checkpoint(tmp_path):
    lm = native(d_mlp=5)
    folder = ji.save(lm, tmp_path / "x")
    before = contents(folder)
    with pytest.raises(SaveError, match="not empty"):
        ji.save(lm, folder)
    ji.save(native(d_mlp=6), folder, overwrite=True)
    assert contents(folder) != before
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(SaveError, match=r"holds thesis\.txt.*would delete"):
        ji.save(lm, folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    ji.save(lm, tmp_path / "empty")


def test_overwriting_the_folder_that_it_was_loaded_from(llama, bfloat16):
    folder = llama().cast(bfloat16).write()
    lm = ji.load(folder)
    before = contents(folder)
    ji.save(lm, folder, overwrite=True)
    assert contents(folder) == before


@pytest.mark.parametrize("when", ["weights", "rest"])
def test_a_full_disk_leaves_nothing(shared, tmp_path, monkeypatch, when):
    lm = ji.load(shared / "stories260k")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if when == "weights":
        monkeypatch.setattr(_safetensors, "_write_array", full)
    else:
        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SaveError, match="Could not write .*No space left"):
        ji.save(lm, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="Could not write"):
        ji.save(native(d_mlp=5), tmp_path / "file" / "x")
