import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxinterp as ji
from jaxinterp._errors import ConfigError, InputError, MissingFileError, WeightsError
from jaxinterp.models import generate
from jaxinterp.weights._mapping import flatten, together


def test_golden_ids_of_a_trained_model(shared):
    lm = ji.load(shared / "stories260k")
    golden = json.loads((shared / "stories260k" / "golden.json").read_text())
    ids = golden["ids"]
    out = generate(lm.model, lm.params, jnp.array([ids[:1]], jnp.int32), max_new_tokens=len(ids) - 1)
    assert np.asarray(out[0]).tolist() == ids
    assert lm.decode(ids) == golden["text"]


def test_gpt2_tensors_stand_where_they_should(gpt2):
    made = gpt2()
    lm = ji.load(made.write())
    flat, d, h = flatten(lm.params), 12, 2
    for i in range(3):
        fused = made.tensors[f"transformer.h.{i}.attn.c_attn.weight"]
        for j, name in enumerate(["W_Q", "W_K", "W_V"]):
            for head in range(h):
                columns = fused[:, j * d + head * 6 : j * d + (head + 1) * 6]
                assert np.array_equal(flat[f"blocks.attn.{name}"][i, head], columns)
        assert np.array_equal(
            flat["blocks.attn.b_V"][i].reshape(-1), made.tensors[f"transformer.h.{i}.attn.c_attn.bias"][2 * d :]
        )
        assert np.array_equal(flat["blocks.attn.W_O"][i, 1], made.tensors[f"transformer.h.{i}.attn.c_proj.weight"][6:])
        assert np.array_equal(flat["blocks.mlp.W_in"][i], made.tensors[f"transformer.h.{i}.mlp.c_fc.weight"])
    assert np.array_equal(flat["embed.W_pos"], made.tensors["transformer.wpe.weight"])
    assert "unembed.W_U" not in flat
    assert all(leaf.dtype == jnp.float32 for leaf in flat.values())


def test_llama_tensors_stand_where_they_should(llama):
    made = llama(attention_bias=True, mlp_bias=True)
    flat = flatten(ji.load(made.write()).params)
    for i in range(2):
        name = f"model.layers.{i}.self_attn."
        assert np.array_equal(flat["blocks.attn.W_K"][i, 1], made.tensors[name + "k_proj.weight"][4:8].T)
        assert np.array_equal(flat["blocks.attn.W_O"][i, 2], made.tensors[name + "o_proj.weight"][:, 8:12].T)
        assert np.array_equal(flat["blocks.attn.b_Q"][i, 5], made.tensors[name + "q_proj.bias"][20:])
        assert np.array_equal(flat["blocks.mlp.W_gate"][i], made.tensors[f"model.layers.{i}.mlp.gate_proj.weight"].T)
        assert np.array_equal(flat["blocks.mlp.b_in"][i], made.tensors[f"model.layers.{i}.mlp.up_proj.bias"])
    assert np.array_equal(flat["unembed.W_U"], made.tensors["lm_head.weight"].T)


def same_params(a, b):
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a.params, b.params)))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_prefixes_and_shards_give_the_same_model(gpt2, tmp_path, prefix, shards):
    plain = ji.load(gpt2().write())
    made = gpt2(prefix)
    made.folder = tmp_path / "other"
    assert same_params(plain, ji.load(made.write(shards=shards)))


def test_harmless_buffers_are_checked_and_left_out(gpt2):
    made = gpt2()
    for i in range(3):
        made.tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.uint8))
        made.tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    assert same_params(ji.load(made.write()), ji.load(gpt2().write()))
    made.tensors["transformer.h.1.attn.bias"] = np.ones((1, 1, 24, 24), np.uint8)
    made.tensors["transformer.h.2.attn.masked_bias"] = np.array(0, np.float32)
    with pytest.raises(WeightsError, match=r"(?s)h\.1\.attn\.bias: it is not the causal mask.*h\.2\.attn\.masked_bias"):
        ji.load(made.write())


def test_rotary_buffers_are_checked(llama):
    made = llama()
    frequencies = (5000.0 ** -(np.arange(0, 4, 2) / 4)).astype(np.float32)
    made.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = frequencies
    ji.load(made.write())
    made.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = 2 * frequencies
    with pytest.raises(WeightsError, match=r"rotary_emb\.inv_freq: its values are not the rotary frequencies"):
        ji.load(made.write())


def test_a_tied_head_may_stand_in_the_file_again(gpt2):
    made = gpt2()
    made.tensors["lm_head.weight"] = made.tensors["transformer.wte.weight"].copy()
    assert same_params(ji.load(made.write()), ji.load(gpt2().write()))
    made.tensors["lm_head.weight"][3, 4] += 1
    with pytest.raises(WeightsError, match=r"lm_head\.weight: the config ties it to transformer\.wte\.weight"):
        ji.load(made.write())


def test_dtypes(llama, bfloat16):
    made = llama()
    plain = flatten(ji.load(made.write()).params)
    for dtype in (jnp.bfloat16, "float16"):
        for name, leaf in flatten(ji.load(made.folder, dtype=dtype).params).items():
            assert leaf.dtype == jnp.dtype(dtype)
            assert np.array_equal(leaf, np.asarray(plain[name]).astype(jnp.dtype(dtype)))
    small = flatten(ji.load(made.cast(bfloat16).write()).params)
    for name, leaf in small.items():
        assert leaf.dtype == jnp.float32
        assert np.array_equal(leaf, np.asarray(plain[name]).astype(bfloat16).astype(np.float32))
    for dtype in ("float64", "int8", "nonsense"):
        with pytest.raises(InputError, match="Legal: float32, bfloat16, float16"):
            ji.load(made.folder, dtype=dtype)


def test_missing_unexpected_and_misshaped_tensors_are_reported_together(llama):
    made = llama()
    del made.tensors["model.layers.1.mlp.up_proj.weight"], made.tensors["lm_head.weight"]
    made.tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(4, np.float32)
    made.tensors["model.layers.7.mlp.up_proj.weight"] = np.ones((28, 20), np.float32)
    made.tensors["model.layers.0.self_attn.k_proj.weight"] = np.ones((20, 12), np.float32)
    made.tensors["model.norm.weight"] = np.ones(20, np.int8)
    with pytest.raises(WeightsError) as caught:
        ji.load(made.write())
    message = str(caught.value)
    assert "2 missing: model.layers.1.mlp.up_proj.weight, lm_head.weight" in message
    assert (
        "2 unexpected" in message and "model.layers.0.self_attn.q_norm.weight" in message and "layers.7.mlp" in message
    )
    assert "model.layers.0.self_attn.k_proj.weight is [20, 12], should be [12, 20] (holds blocks.attn.W_K)" in message
    assert "model.norm.weight is I8" in message


def test_the_weights_of_another_model(gpt2, llama):
    made = llama()
    made.tensors = gpt2().tensors
    with pytest.raises(WeightsError, match="(?s)21 missing.*40 unexpected") as caught:
        ji.load(made.write())
    assert "model.layers.1.mlp.up_proj.weight" in str(caught.value)


def test_long_lists_of_names_draw_layers_together():
    names = [f"h.{i}.ln.{part}" for i in (0, 1, 2, 5) for part in ("weight", "bias")]
    assert together([*names, "h.9.x.y", "wte.weight"]) == [
        "h.{0-2,5}.ln.weight",
        "h.{0-2,5}.ln.bias",
        "h.9.x.y",
        "wte.weight",
    ]


def test_values_that_are_not_finite_are_named(gpt2):
    made = gpt2()
    made.tensors["transformer.h.1.mlp.c_fc.weight"][2, 3] = np.nan
    made.tensors["transformer.wpe.weight"][0, :2] = np.inf
    with pytest.raises(WeightsError) as caught:
        ji.load(made.write())
    assert "transformer.h.1.mlp.c_fc.weight (1 NaN and 0 infinite of 576)" in str(caught.value)
    assert "transformer.wpe.weight (0 NaN and 2 infinite of 288)" in str(caught.value)


def test_values_too_large_for_the_dtype_are_named(gpt2):
    made = gpt2()
    made.tensors["transformer.wte.weight"][5, 0] = 1e5
    ji.load(made.write())
    with pytest.raises(WeightsError, match=r"transformer\.wte\.weight \(a value of size 1e\+05, too large for float16"):
        ji.load(made.folder, dtype="float16")


def test_bfloat16_nan_is_noticed(llama, bfloat16):
    made = llama().cast(bfloat16)
    made.tensors["model.norm.weight"][1] = np.nan
    with pytest.raises(WeightsError, match=r"model\.norm\.weight \(1 NaN"):
        ji.load(made.write())


def test_missing_shards_are_named_together(llama):
    folder = llama().write(shards=4)
    for i in (2, 4):
        (folder / f"model-0000{i}-of-00004.safetensors").unlink()
    with pytest.raises(
        MissingFileError, match=r"lacks 2 of the 4 shards.*model-00002-of-00004\.safetensors, model-00004-of-00004"
    ):
        ji.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.update({"model.norm.weight": "model-00001-of-00002.safetensors"}),
            r"model\.norm\.weight should stand in",
        ),
        (lambda m: m.update({"ghost.weight": "model-00001-of-00002.safetensors"}), r"ghost\.weight .* is in no shard"),
        (
            lambda m: m.update({"lm_head.weight": "../evil.safetensors"}),
            r"outside of its folder: \.\./evil\.safetensors",
        ),
        (lambda m: m.update({"lm_head.weight": 3}), "no weight_map"),
        (lambda m: m.clear(), "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit(llama, change, words):
    folder = llama().write(shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["model.norm.weight"] == "model-00002-of-00002.safetensors"
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=words):
        ji.load(folder)


def test_one_tensor_in_two_shards(llama):
    folder = llama().write(shards=2)
    file = folder / "model-00001-of-00002.safetensors"
    tensors = safetensors.numpy.load_file(file)
    other = safetensors.numpy.load_file(folder / "model-00002-of-00002.safetensors")
    name = next(iter(other))
    safetensors.numpy.save_file({**tensors, name: other[name]}, file)
    with pytest.raises(WeightsError, match=f"{name} stands in both"):
        ji.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(gpt2, name):
    folder = gpt2().write()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(WeightsError, match="never opens one") as caught:
        ji.load(folder)
    assert name in str(caught.value) and "save_pretrained" in str(caught.value)
    assert not (folder / "opened").exists()


def test_no_weights_at_all(gpt2):
    folder = gpt2().write()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(MissingFileError, match=r"neither model\.safetensors nor .* It holds other\.safetensors"):
        ji.load(folder)


def test_no_config(gpt2):
    folder = gpt2().write()
    (folder / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        ji.load(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(WeightsError, match=r"config\.json is not legal JSON"):
        ji.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="holds a list"):
        ji.load(folder)


def test_truncated_weights(gpt2):
    folder = gpt2().write()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated or corrupt"):
        ji.load(folder)


def test_an_unsupported_architecture(gpt2):
    with pytest.raises(ConfigError, match=r"(?s)'mamba'.*Supported: gpt2 .*llama"):
        ji.load(gpt2(model_type="mamba").write())


def test_a_missing_tokenizer_says_how_to_go_on(gpt2, shared):
    folder = gpt2().write(tokenizer=False)
    with pytest.raises(MissingFileError, match=r"no tokenizer\.json.*tokenizer='FOLDER'.*tokenizer=None"):
        ji.load(folder)
    lm = ji.load(folder, tokenizer=None)
    assert lm.tokenizer is None
    assert lm.predict([1, 2, 3], k=2)[0].token.startswith("<")
    assert ji.load(folder, tokenizer=shared / "gpt2-tokenizer").tokenizer.d_vocab == 50257
    assert ji.load(
        folder, tokenizer=str(shared / "gpt2-tokenizer" / "tokenizer.json"), prepend_bos=True
    ).tokenizer.prepend_bos
    with pytest.raises(InputError, match="prepend_bos"):
        ji.load(folder, tokenizer=None, prepend_bos=True)


def test_bos_follows_the_tokenizer_unless_said(shared):
    assert ji.load(shared / "stories260k").tokenizer.prepend_bos
    assert not ji.load(shared / "stories260k", prepend_bos=False).tokenizer.prepend_bos


def test_names_that_are_no_folder(tmp_path, gpt2):
    for name in ("./nowhere/at/all", "/no/such/folder", "a/b/c", "~/nothing here"):
        with pytest.raises(MissingFileError, match=f"no folder '{name}'"):
            ji.load(name)
    folder = gpt2().write()
    with pytest.raises(MissingFileError, match="is a file. Give the folder"):
        ji.load(folder / "model.safetensors")
    with pytest.raises(ConfigError, match="revision = 'main' is for models of the hub"):
        ji.load(folder, revision="main")


ZOO = r"shipped with jaxinterp loads by jaxinterp\.zoo\.load\(name\)"


def test_a_name_that_is_nowhere_is_told_of_the_zoo(tmp_path, monkeypatch):
    from huggingface_hub.errors import HFValidationError

    def refuse(*_, **__):
        raise HFValidationError("no such repository.")

    with pytest.raises(MissingFileError, match=ZOO):
        ji.load("./stories")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingFileError, match="(?s)could not be reached.*" + ZOO):
        ji.load("stories")
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(MissingFileError, match="(?s)does not give a model of that name.*" + ZOO):
        ji.load("stories")


def test_offline_the_error_names_the_folder_route(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        MissingFileError,
        match=r"(?s)no folder 'owner/model'.*hf download owner/model --local-dir FOLDER.*load\('FOLDER'\)",
    ):
        ji.load("owner/model", revision="v1")


def test_the_hub_is_asked_for_safetensors_and_json_alone(llama, monkeypatch):
    folder = llama().write(shards=2)
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    lm = ji.load("owner/model", revision="v1")
    assert lm.source["name"] == "owner/model" and lm.source["revision"] == folder.name
    assert [(name, revision) for name, revision, _ in asked] == [("owner/model", "v1")] * 2
    assert asked[1][2] == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert not any(p.endswith((".bin", ".pt", ".py", "*")) for _, _, patterns in asked for p in patterns)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(MissingFileError):
        ji.load("owner/model")
    assert asked[-1][2] == ("model.safetensors",)


def test_where_a_model_came_from(gpt2):
    folder = gpt2().write()
    source = ji.load(folder).source
    assert (source["name"], source["family"], source["dtype"], source["revision"]) == (
        "tiny-gpt2",
        "gpt2",
        "float32",
        None,
    )
    assert source["config"] == json.loads((folder / "config.json").read_text())


def test_the_bos_policy_is_part_of_where_a_model_came_from(shared, gpt2, tmp_path):
    folder = shared / "stories260k"
    assert ji.load(folder).source["prepend_bos"] is True
    lm = ji.load(folder, prepend_bos=False)
    assert lm.source["prepend_bos"] is False
    assert ji.load(ji.save(lm, tmp_path / "again")).source["prepend_bos"] is True  # the files' own, as before
    assert ji.load(gpt2().write(tokenizer=False), tokenizer=None).source["prepend_bos"] is None
