"""Our own form, and what holds for files of every form."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp._errors import ConfigError, InputError, MissingFileError, SaveError, WeightsError
from jaxinterp.saes import SAE, ReLU, Source, TopK, load, save
from tests.saes.problems import ARCHITECTURES, make_config, make_params, make_rows


@functools.cache
def make_sae(name="relu_2024", kind="sae", normalize="none", dtype=jnp.float32, **changes):
    config = make_config(ARCHITECTURES[name], kind, normalize=normalize, **{"site": "resid_post.3", **changes})
    params = {key: leaf.astype(dtype) for key, leaf in make_params(config).items()}
    constant = 1.7 if normalize in ("sqrt_d", "unit") else 1.0
    return SAE(params=params, scales=dict.fromkeys(("input", "target"), jnp.float32(constant)), config=config)


def check_equal(got, want):
    assert got.config == want.config
    assert got.params.keys() == want.params.keys()
    for name in want.params:
        assert got.params[name].dtype == want.params[name].dtype
        assert np.asarray(got.params[name]).tobytes() == np.asarray(want.params[name]).tobytes()
    assert {k: float(v) for k, v in got.scales.items()} == {k: float(v) for k, v in want.scales.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_own_form_holds_every_dictionary_bit_for_bit(name, tmp_path):
    for kind, normalize in (("sae", "layer_norm"), ("skip", "sqrt_d")):
        sae = make_sae(name, kind, normalize, compute_dtype="bfloat16")
        check_equal(load(save(sae, tmp_path / kind)), sae)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_are_kept_or_changed_as_asked(dtype, tmp_path):
    sae = make_sae("gated", dtype=dtype)
    name = jnp.dtype(dtype).name
    folder = save(sae, tmp_path / "narrow")
    check_equal(load(folder, dtype=None), sae)
    wide = load(folder)
    assert all(leaf.dtype == jnp.float32 for leaf in wide.params.values())
    x = make_rows()
    np.testing.assert_array_equal(load(folder, dtype=None).encode(x), wide.encode(x))  # computed with in float32
    check_equal(load(save(wide, tmp_path / "again", dtype=name), dtype=None), sae)


def test_sites_can_be_told(tmp_path):
    folder = save(make_sae(kind="transcoder"), tmp_path / "a")
    loaded = load(folder, site="mlp.in.1", target="mlp.out.1")
    assert (loaded.config.site, loaded.config.target) == ("mlp.in.1", "mlp.out.1")
    with pytest.raises(InputError, match=r"target = 'z'.*no transcoder"):
        load(save(make_sae(), tmp_path / "b"), target="z")


def test_a_folder_is_replaced_only_if_it_holds_a_dictionary_alone(tmp_path):
    folder = save(make_sae(), tmp_path / "sae")
    with pytest.raises(SaveError, match="not empty"):
        save(make_sae("topk"), folder)
    save(make_sae("topk"), folder, overwrite=True)
    assert isinstance(load(folder).config.architecture, TopK)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SaveError, match=r"holds notes\.txt"):
        save(make_sae(), folder, overwrite=True)
    assert isinstance(load(folder).config.architecture, TopK)


def test_nothing_is_left_of_a_save_that_fails(tmp_path):
    sae = make_sae()
    broken = dataclasses.replace(sae, params={**sae.params, "b_enc": sae.params["b_enc"].at[3].set(jnp.nan)})
    with pytest.raises(WeightsError, match="b_enc holds NaN"):
        save(broken, tmp_path / "sae")
    with pytest.raises(
        WeightsError, match=r"(?s)b_enc is missing.*W_skip is not of this.*b_dec is \[3\], should be \[10\]"
    ):
        params = {
            "W_enc": sae.params["W_enc"],
            "W_dec": sae.params["W_dec"],
            "W_skip": jnp.ones(2),
            "b_dec": jnp.ones(3),
        }
        save(dataclasses.replace(sae, params=params), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    folder = save(make_sae(), tmp_path / "run" / "sae")
    with pytest.raises(InputError, match=r"form = 'saelense'.*'saelens'"):
        save(make_sae(), tmp_path / "x", form="saelense")
    with pytest.raises(InputError, match=r"form = 'saelense'.*'saelens'"):
        load(folder, form="saelense")
    for function in (lambda **k: load(folder, **k), lambda **k: save(make_sae(), tmp_path / "x", **k)):
        with pytest.raises(InputError, match=r"dtype = 'int8'.*float32, bfloat16, float16"):
            function(dtype="int8")
    with pytest.raises(InputError, match="scale = 0"):
        load(folder, scale=0.0)
    with pytest.raises(MissingFileError, match=r"is a file. Give the folder"):
        load(folder / "config.json")
    with pytest.raises(MissingFileError, match=r"dictionaries in sae: give subfolder="):
        load(tmp_path / "run")
    check_equal(load(tmp_path / "run", subfolder="sae"), make_sae())
    with pytest.raises(MissingFileError, match=r"no sae_weights.safetensors \(saelens\)"):
        load(folder, form="saelens")
    with pytest.raises(MissingFileError, match=r"There is no folder .*missing"):
        load(tmp_path / "missing")
    with pytest.raises(MissingFileError, match=r"(?s)for a dictionary of that name.*subfolder="):
        load("nobody/nothing")
    with pytest.raises(ConfigError, match=r"revision = 'main'.*local folder"):
        load(folder, revision="main")


def test_broken_files_of_our_own_form(tmp_path):
    folder = save(make_sae(), tmp_path / "sae")
    config, weights = folder / "config.json", folder / "dictionary.safetensors"
    text, data = config.read_text(), weights.read_bytes()
    weights.write_bytes(data[:-5])
    with pytest.raises(WeightsError, match="truncated"):
        load(folder)
    weights.write_bytes(data)
    for changed, error in (
        ({"version": 2}, "version 2; this jaxinterp reads"),
        ({"sae": {**json.loads(text)["sae"], "d_in": 11}}, r"(?s)W_enc is \[40, 10\], should be \[40, 11\].*b_dec"),
        ({"sae": {**json.loads(text)["sae"], "architecture": {"name": "rleu"}}}, "'relu'"),
        ({"sae": {**json.loads(text)["sae"], "d_inn": 11}}, "'d_inn'"),
    ):
        config.write_text(json.dumps({**json.loads(text), **changed}))
        with pytest.raises((ConfigError, WeightsError), match=error):
            load(folder)
    config.unlink()
    with pytest.raises(MissingFileError, match=r"has no config.json"):
        load(folder)


def test_files_of_a_source_stay_in_their_folder(tmp_path):
    sae = dataclasses.replace(make_sae(), source=Source(form="saelens", files=(("cfg.json", b"{}"),)))
    folder = save(sae, tmp_path / "a")
    said = json.loads((folder / "config.json").read_text())
    said["source"]["files"] = ["../../cfg.json"]
    (folder / "config.json").write_text(json.dumps(said))
    assert load(folder).source == sae.source


def test_normalization_by_rows():
    x = make_rows() + 3
    for kind in ("layer_norm", "row_sqrt_d"):
        sae = make_sae(normalize=kind)
        rows = np.asarray(x, np.float64)
        mean, deviation = rows.mean(1, keepdims=True), rows.std(1, keepdims=True, ddof=1)
        length = np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(10)
        shift, factor, divisor = (mean, deviation, deviation + 1e-5) if kind == "layer_norm" else (0, length, length)
        p = {name: np.asarray(leaf, np.float64) for name, leaf in sae.params.items()}
        latents = np.maximum((rows - shift) / divisor @ p["W_enc"].T + p["b_enc"], 0)
        np.testing.assert_allclose(sae.encode(x), latents, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sae(x), (latents @ p["W_dec"] + p["b_dec"]) * factor + shift, rtol=1e-4, atol=1e-3)
        with pytest.raises(InputError, match=r"decode\(latents, x\)"):
            sae.decode(sae.encode(x))
        with pytest.raises(ConfigError, match=f"normalize='{kind}' of a transcoder"):
            make_config(ReLU(), "transcoder", normalize=kind)


@pytest.mark.parametrize("name", ["relu_2024"])
def test_latents_times_the_length_of_their_decoder_row(name):
    sae, x = make_sae(name), make_rows()
    architecture = dataclasses.replace(ARCHITECTURES[name], norm_scaled=True)
    scaled = dataclasses.replace(sae, config=dataclasses.replace(sae.config, architecture=architecture))
    lengths = np.linalg.norm(sae.params["W_dec"], axis=1)
    np.testing.assert_allclose(scaled.encode(x), np.asarray(sae.encode(x)) * lengths, rtol=1e-5)
    np.testing.assert_allclose(scaled(x), sae(x), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(scaled) != jax.tree.structure(sae)
