"""Other people's files, written by hand: what they compute, that they go back as they were, and what is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinterp._errors import ConfigError, InputError, MissingFileError, WeightsError
from jaxinterp.saes import JumpReLU, TopK, load, save
from tests.saes.foreign import CASES, SPARSIFY, WEIGHTS, D, N, write
from tests.saes.test_files import make_sae
from tests.tiny import check_close


def rows(width=D):
    rng = np.random.default_rng(11)
    return (rng.normal(size=(12, width)) * np.exp(0.5 * rng.normal(size=(12, 1))) + 0.3).astype(np.float32)


def tensors_in(folder, form):
    path = folder / WEIGHTS[form]
    return dict(np.load(path)) if path.suffix == ".npz" else load_file(path)


def check_same_files(got, want, form):
    first, last = tensors_in(want, form), tensors_in(got, form)
    assert first.keys() == last.keys()
    for name in first:
        assert (first[name].dtype, first[name].shape) == (last[name].dtype, last[name].shape)
        if name != "topk_threshold":  # float64 there
            assert first[name].tobytes() == last[name].tobytes(), name
    for path in want.glob("*.json"):
        assert (got / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_it_computes_there_and_goes_back_as_it_was(name, tmp_path):
    case = CASES[name]
    folder = write(case, tmp_path)
    sae = load(folder, scale=case.scale)
    x = rows()
    latents, out = case.compute({key: v.astype(np.float64) for key, v in case.tensors.items()}, x.astype(np.float64))
    assert 0.02 < (latents > 0).mean() < 0.98
    check_close(sae.encode(jnp.asarray(x)), latents)
    check_close(sae(jnp.asarray(x)), out)
    assert (sae.config.site, sae.config.target) == (case.site, case.target)
    check_same_files(save(sae, tmp_path / "back", form=case.form), folder, case.form)
    through = load(save(sae, tmp_path / "own"))
    assert through.config == sae.config and through.source == sae.source
    check_same_files(save(through, tmp_path / "again", form=case.form), folder, case.form)


def test_narrow_tensors_go_back_as_they_were_or_not_at_all(tmp_path):
    case = CASES["saelens jumprelu"]
    narrow = {key: value.astype(jnp.bfloat16) for key, value in case.tensors.items()}
    folder = write(case._replace(tensors={**narrow, "threshold": case.tensors["threshold"]}), tmp_path)
    sae = load(folder)
    assert sae.params["W_enc"].dtype == jnp.float32 and load(folder, dtype=None).params["W_enc"].dtype == jnp.bfloat16
    check_same_files(save(sae, tmp_path / "back", form="saelens"), folder, "saelens")
    moved = dataclasses.replace(sae, params={**sae.params, "b_enc": sae.params["b_enc"] + 0.001})
    with pytest.raises(WeightsError, match=r"b_enc was bfloat16.*dtype='float32'"):
        save(moved, tmp_path / "moved", form="saelens")
    again = load(save(moved, tmp_path / "wide", form="saelens", dtype="float32"))
    np.testing.assert_array_equal(again.params["b_enc"], moved.params["b_enc"])
    assert json.loads((tmp_path / "wide/cfg.json").read_text())["dtype"] == "float32"


def test_what_was_changed_is_written_anew_with_its_notes(tmp_path):
    sae = load(write(CASES["saelens standard"], tmp_path), site="mlp.out.1")
    folder = save(sae, tmp_path / "changed", form="saelens")
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_mlp_out" and metadata["own"] == {"note": [1, None]}
    assert load(folder).config.site == "mlp.out.1"
    head = load(write(CASES["saelens one head"]._replace(place="head"), tmp_path))
    for i, (site, index) in enumerate([("blocks.3.attn.hook_q", 2), ("resid_pre.1", None)]):
        moved = dataclasses.replace(head, config=dataclasses.replace(head.config, site=site))
        folder = save(moved, tmp_path / f"head{i}", form="saelens", dtype="float16")
        assert json.loads((folder / "cfg.json").read_text())["metadata"]["hook_head_index"] == index
        assert load(folder).config.site == site
    told = load(
        write(CASES["saelens average norm"]._replace(place="scaled"), tmp_path), scale=0.5
    )  # not what the file says
    again = load(save(told, tmp_path / "told", form="saelens"))
    assert again.config.normalize == "none"
    check_close(again(jnp.asarray(rows())), told(jnp.asarray(rows())))


HOLDS = {
    "saelens": [
        "relu_2024",
        "topk",
        "topk_scaled",
        "batch_topk_scaled",
        "matryoshka",
        "jump_relu",
        "jump_relu_tanh",
        "gated",
    ],
    "gemma_scope": ["jump_relu", "batch_topk_scaled", "jump_relu_tanh"],
    "dictionary_learning": [
        "relu_2023",
        "relu_2024",
        "topk_scaled",
        "batch_topk",
        "matryoshka",
        "gated",
        "gated_weighted",
        "jump_relu",
    ],
    "sparsify": ["topk", "topk_scaled"],
}


@pytest.mark.parametrize(
    ("form", "name", "normalize"),
    [(form, name, "sqrt_d") for form, names in HOLDS.items() for name in names]
    + [(form, names[0], "none") for form, names in HOLDS.items()],
)
def test_our_own_in_their_form_computes_the_same(form, name, normalize, tmp_path):
    sae = make_sae(name, normalize=normalize)
    if "threshold" in sae.params and name != "jump_relu_tanh":
        sae = dataclasses.replace(sae, params={**sae.params, "threshold": jnp.float32(0.6)})
    again = load(save(sae, tmp_path / "layers.3", form=form))
    x = jnp.asarray(rows(10))
    check_close(again.encode(x), sae.encode(x))
    check_close(again(x), sae(x))
    assert again.config.site == sae.config.site
    assert type(again.config.architecture) is (
        JumpReLU if form in ("saelens", "gemma_scope") and "threshold" in sae.params else type(sae.config.architecture)
    )


def test_what_a_form_cannot_hold_is_refused_with_all_reasons(tmp_path):
    for form, sae, reasons in (
        ("saelens", make_sae("topk", "transcoder"), ["transcoder of the kind 'topk'"]),
        ("gemma_scope", make_sae("topk", "skip"), ["'topk', not JumpReLU", "linear skip"]),
        ("gemma_scope", make_sae("jump_relu", normalize="layer_norm"), ["normalize='layer_norm'"]),
        ("dictionary_learning", make_sae("topk", subtract_decoder_bias=False), ["AutoEncoderTopK there subtracts"]),
        ("dictionary_learning", make_sae(kind="transcoder"), ["it is a transcoder"]),
        ("sparsify", make_sae(kind="transcoder", normalize="sqrt_d"), ["'relu', not TopK", "d_out=7 is not d_in=10"]),
        ("sparsify", make_sae("topk_multi", subtract_decoder_bias=False), ["does not subtract", "by 4 k latents"]),
    ):
        with pytest.raises(InputError) as caught:
            save(sae, tmp_path / "x", form=form)
        assert all(reason in str(caught.value) for reason in reasons), str(caught.value)
    with pytest.raises(InputError, match=r"no bfloat16"):
        save(make_sae("jump_relu", subtract_decoder_bias=False), tmp_path / "x", form="gemma_scope", dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []


def faulty(name, file, **changes):
    """A case with changed fields, of a nested table where its name is given as table__field."""
    case = CASES[name]
    table = json.loads(json.dumps(case.files[file]))
    for key, value in changes.items():
        inner = table
        *outer, last = key.split("__")
        for part in outer:
            inner = inner[part]
        inner[last] = value
        if value is ...:
            del inner[last]
    return case._replace(files={**case.files, file: table})


@pytest.mark.parametrize("form", ["saelens", "gemma_scope", "dictionary_learning", "sparsify"])
def test_the_site_and_the_constant_stay_wherever_it_is_written(form, tmp_path):
    case = {
        "saelens": CASES["saelens average norm told"], "gemma_scope": CASES["gemma_scope transcoder"],
        "dictionary_learning": faulty("dictionary_learning topk", "config.json", buffer__io="in"),
        "sparsify": CASES["sparsify of a module"],
    }[form]  # fmt: skip
    sae = load(write(case, tmp_path), scale=case.scale)
    for i, more in enumerate(({}, {"dtype": "float32"})):
        again = load(save(sae, tmp_path / f"elsewhere{i}", form=form, **more))
        assert (again.config.site, again.config.target) == (sae.config.site, sae.config.target)
        check_close(again(jnp.asarray(rows())), sae(jnp.asarray(rows())))
        moved = dataclasses.replace(again, config=dataclasses.replace(again.config, site="resid_pre.2"))
        assert load(save(moved, tmp_path / f"moved{i}", form=form, **more)).config.site == "resid_pre.2"


FAULTS = {
    "architecture": (faulty("saelens standard", "cfg.json", architecture="temporal"), "'temporal' is not supported.*gated"),
    "fields": (
        faulty("saelens topk", "cfg.json", k="4", shiny=1, normalize_activations="covariance_whitening", d_in=...),
        "shiny = 1.*d_in is missing.*covariance_whitening' is not implemented.*k = '4' is not a whole number",
    ),
    "losses": (faulty("saelens training", "cfg.json", lp_norm=0.5), "lp_norm = 0.5 is not implemented"),
    "old activation": (
        faulty("saelens 1", "cfg.json", activation_fn="tanh-relu", finetuning_scaling_factor=True), "scaling_factor.*|tanh-relu.*"
    ),
    "signed topk": (faulty("saelens 5 topk", "cfg.json", activation_fn_kwargs={"k": 2, "signed": True}), "signed = True"),
    "fractional k": (faulty("saelens batchtopk", "cfg.json", k=2.5), "k = 2.5: a mean number"),
    "transcoder": (faulty("saelens transcoder", "cfg.json", apply_b_dec_to_input=True), "apply_b_dec_to_input = True"),
    "no constant": (faulty("saelens average norm told", "cfg.json"), "scale=1.0 for what SAELens computes"),
    "k above N": (faulty("saelens topk", "cfg.json", k=N + 1), f"k={N + 1} of n_latents={N}"),
    "class": (
        faulty("dictionary_learning topk", "config.json", trainer__dict_class="CrossCoder", trainer__shiny=2),
        "trainer.shiny = 2.*dict_class = 'CrossCoder'",
    ),
    "no k": (faulty("dictionary_learning topk", "config.json", trainer__k=...), "trainer.k is missing"),
    "group sizes": (
        faulty("dictionary_learning matryoshka", "config.json", trainer__group_sizes=["5", 15]), r"group_sizes = \['5', 15\]"
    ),
    "empty trainer": (faulty("dictionary_learning topk", "config.json", trainer={}), "trainer.dict_class is missing"),
    "listed": (faulty("saelens standard", "cfg.json", architecture=["standard"], metadata=3), "is not supported.*metadata = 3"),
    "no trainer": (faulty("dictionary_learning topk", "config.json", trainer=...), "trainer is missing"),
    "groupmax": (
        faulty("sparsify", "cfg.json", activation="groupmax", signed=True, cross_layer=4),
        "cross_layer = 4.*groupmax' is not implemented.*signed = True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_config_that_is_not_understood_is_an_error_that_names_all(name, tmp_path):
    case, message = FAULTS[name]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load(write(case, tmp_path))


@pytest.mark.parametrize("name", ["saelens jumprelu", "gemma_scope", "dictionary_learning batch", "sparsify"])
def test_tensors_that_do_not_fit_are_named(name, tmp_path):
    case = CASES[name]
    first, *_, last = [key for key, value in case.tensors.items() if value.ndim]
    wrong = {**case.tensors, last: case.tensors[last][:-1], "extra": np.ones(2, np.float32)}
    with pytest.raises(WeightsError, match=rf"(?s)extra is not understood.*{last} is .*should be"):
        load(write(case._replace(tensors=wrong, place="layers.3/a"), tmp_path))
    missing = {key: value for key, value in case.tensors.items() if key != last}
    with pytest.raises(WeightsError, match=f"{last} is missing"):
        load(write(case._replace(tensors=missing, place="layers.3/b"), tmp_path))
    spoiled = {**case.tensors, first: np.where(case.tensors[first] > 1, np.nan, case.tensors[first])}
    with pytest.raises(WeightsError, match=f"{first} holds NaN"):
        load(write(case._replace(tensors=spoiled, place="layers.3/c"), tmp_path))
    folder = write(case._replace(place="layers.3/d"), tmp_path)
    path = folder / WEIGHTS[case.form]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="truncated"):
        load(folder)


def test_buffers_that_disagree_with_the_config(tmp_path):
    case = CASES["dictionary_learning topk"]
    with pytest.raises(WeightsError, match="k: it is 5, and the config has 4"):
        load(write(case._replace(tensors={**case.tensors, "k": np.asarray(np.int32(5))}), tmp_path))
    case = CASES["saelens 1"]
    with pytest.raises(WeightsError, match="scaling_factor: latents would be multiplied"):
        load(
            write(
                case._replace(tensors={**case.tensors, "scaling_factor": np.full(N, 2, np.float32)}, place="b"),
                tmp_path,
            )
        )


def test_a_constant_that_cannot_be_read(tmp_path):
    folder = write(CASES["saelens average norm"], tmp_path)
    (folder / "activation_scaler.json").write_text("[1")
    with pytest.raises(WeightsError, match="activation_scaler.json holds no scaling_factor"):
        load(folder)


def test_the_layer_of_gemma_scope_is_that_behind_its_name(tmp_path):
    case = CASES["gemma_scope"]
    folder = write(case._replace(place=f"layer_3_runs/{case.place}"), tmp_path)
    assert load(folder).config.site == "resid_post.20"


def test_from_the_hub_only_what_is_understood_is_fetched(tmp_path, monkeypatch):
    import huggingface_hub

    place = "models--google--gemma-scope-2b-pt-res/snapshots/abc"
    write(CASES["gemma_scope"]._replace(place=f"{place}/layer_20/width_16k/l0"), tmp_path)
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return tmp_path / place

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    sae = load("google/gemma-scope-2b-pt-res", subfolder="layer_20/width_16k/l0", revision="main")
    assert sae.config.site == "resid_post.20"
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("google/gemma-scope-2b-pt-res", "main")
    assert "layer_20/width_16k/l0/params.npz" in patterns and "layer_20/width_16k/l0/cfg.json" in patterns
    assert not [pattern for pattern in patterns if pattern.endswith((".pt", ".bin", "/**"))]


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    folder = write(CASES["dictionary_learning topk"], tmp_path)
    (folder / "ae.safetensors").rename(folder / "ae.pt")
    with pytest.raises(WeightsError, match=r"(?s)ae\.pt is a pickle.*weights_only=True.*save_file.*ae\.safetensors"):
        load(folder)
    np.savez(tmp_path / "params.npz", W_enc=np.array([{}], object))
    with pytest.raises(WeightsError, match="no arrays"):
        load(tmp_path)


def test_folders_with_two_forms_or_half_of_one(tmp_path):
    folder = write(CASES["sparsify"], tmp_path)
    save_file(CASES["saelens standard"].tensors, folder / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match="forms saelens, sparsify: choose"):
        load(folder)
    assert isinstance(load(folder, form="sparsify").config.architecture, TopK)
    (folder / "cfg.json").unlink()
    with pytest.raises(MissingFileError, match=r"has no cfg\.json"):
        load(folder, form="sparsify")
    with pytest.raises(InputError, match=r"scale = 2.0, but this dictionary multiplies rows by no constant"):
        load(write(CASES["saelens standard"], tmp_path), scale=2.0)


def test_a_width_that_follows_from_a_factor(tmp_path):
    config = {key: value for key, value in SPARSIFY.items() if key != "num_latents"}
    with pytest.raises(WeightsError, match=rf"encoder.weight is \[{N}, {D}\], should be \[{32 * D}, {D}\]"):
        load(write(CASES["sparsify"]._replace(files={"cfg.json": config}), tmp_path))
