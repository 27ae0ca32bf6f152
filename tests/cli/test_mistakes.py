"""Every mistake that reaches the command line: exit code 1, one clear message, no traceback, nothing left behind."""

import json
import shutil
import struct

import numpy as np
import pytest

from jaxinterp import zoo

SHE_HE = ("--correct", " She", "--wrong", " He")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--site": "attn.zz"}, "Did you mean 'attn.z'"),
        ({"--layers": "9"}, "0 to 4"),
        ({"--heads": "8"}, "0 to 7"),
        ({"--over": "layer,position", "--positions": "99"}, "0 to"),
        ({"--over": "layer,hed"}, "Did you mean 'head'"),
        ({"--over": "layer,hed", "--model": "no-such-folder"}, "no axis 'hed'"),  # told before a model is loaded
        ({"--over": "layer, layer"}, "names layer 2 times"),
        ({"--over": "layer,"}, "no axis ''"),
        ({"--top": "0"}, "--top 0 is not legal: give a number at least 1"),
        ({"--top": "-2"}, "--top -2"),
        ({"--memory": "0"}, "--memory 0"),
        ({"--memory": "-1"}, "--memory -1"),
        ({"--memory": "inf"}, "--memory inf"),
        ({"--over": "layer,position", "--heads": "1"}, "Add it to --over"),
        ({"--site": "resid_pre"}, "no head"),
        ({"--over": "layer,head,position,feature"}, "has 4 axes"),
        ({"--corrupt": "One day, Timothy had an idea."}, "corrupt (16)"),
        ({"--corrupt": "One day, Lily had an idea."}, "the same tokens"),
        ({"--correct": " Sheriff"}, "Sheriff"),
        ({"--wrong": " She"}, "both a correct and a wrong answer"),
        ({"--clean": ""}, "empty"),
        ({"--clean": "Lily. " * 600, "--corrupt": "Tim. " * 600}, "512"),
        ({"--pairs": "nowhere.jsonl"}, "Give one or the other"),
        ({"--model": "no-such-folder"}, "no-such-folder"),
        ({"--revision": "main", "--model": "no/such/folder"}, "no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_options_of_patch(refused, stories, pair, tmp_path, change, message):
    options = {
        "--model": str(stories),
        **dict(zip(pair[::2], pair[1::2], strict=True)),
        "--out": str(tmp_path / "out"),
    } | change
    said = refused("patch", *[part for item in options.items() for part in item])
    assert message in said
    assert not (tmp_path / "out" / "effects.html").exists()


def test_missing_prompts_and_a_missing_or_faulty_file_of_pairs(refused, stories, tmp_path):
    assert "--corrupt, --correct, --wrong" in refused(
        "patch", "--model", stories, "--clean", "a", "--out", tmp_path / "o"
    )
    assert "nowhere.jsonl" in refused("patch", "--model", stories, "--pairs", "nowhere.jsonl", "--out", tmp_path / "o")
    faulty = tmp_path / "pairs.jsonl"
    faulty.write_text('{"clean": "a"\n{"clean": "One", "corrupt": "Two", "corect": " a", "wrong": " b"}\n')
    said = refused("patch", "--model", stories, "--pairs", faulty, "--out", tmp_path / "o")
    assert "line 1: not JSON" in said and "line 2" in said and "Did you mean 'correct'" in said


def test_other_commands(refused, stories):
    assert "empty" in refused("predict", "", "--model", stories)
    assert "empty" in refused("generate", "", "--model", stories)
    assert "--k 0 is not legal: give a number from 1 to 512" in refused("predict", "a", "--k", 0, "--model", stories)
    assert "--k 99999" in refused("predict", "a", "--k", 99999, "--model", stories)
    assert "512" in refused("generate", "Once", "--max-new-tokens", 600, "--model", stories)
    assert "512" in refused("predict", "Once upon a time. " * 200, "--model", stories)
    assert "--temperature -1" in refused("generate", "Once", "--temperature", -1, "--model", stories)
    assert "--temperature inf" in refused("generate", "Once", "--temperature", "inf", "--model", stories)
    assert "--max-new-tokens 0" in refused("generate", "Once", "--max-new-tokens", 0, "--model", stories)
    assert "--seed -1" in refused("generate", "Once", "--temperature", 1, "--seed", -1, "--model", stories)
    assert "--n-random -1" in refused("demo", "--n-random", -1, "--model", stories)
    assert "--n-search 0" in refused("demo", "--n-search", 0, "--model", stories)


@pytest.mark.parametrize("seed", [0, 4])
def test_a_seed_without_sampling_is_refused(refused, stories, seed):
    assert "leave --seed out" in refused("generate", "Once", "--seed", seed, "--model", stories)


def test_options_of_sampling_that_are_not_legal(refused, stories):
    sampled = "generate", "Once", "--temperature", 1, "--model", stories
    assert "leave --top-k out" in refused("generate", "Once", "--top-k", 3, "--model", stories)
    assert "--top-k 0" in refused(*sampled, "--top-k", 0)
    assert "top_k=513 is not legal" in refused(*sampled, "--top-k", 513)
    assert "--top-p 1.5" in refused(*sampled, "--top-p", 1.5)
    assert "top_p=0.0 is not legal" in refused(*sampled, "--top-p", 0)
    assert "at least one character" in refused("generate", "Once", "--stop", "", "--model", stories)


def test_a_hint_is_about_what_happened(refused, stories, pair, tmp_path):
    space = "Mind the space before a word"
    answer = ("patch", *pair[:4], *SHE_HE[:3], " Sheriff", "--out", tmp_path / "o", "--model", stories)
    assert space in refused(*answer)
    for said in (
        refused("predict", "", "--model", stories),
        refused("generate", "Once", "--max-new-tokens", 9999, "--model", stories),
        refused("predict", "Once", "--model", "induction"),
    ):
        assert space not in said and " --help` explains every option" in said
    missing = "patch", "--model", stories, "--pairs", "nowhere.jsonl", "--out", tmp_path / "o"
    assert "--model takes" not in refused(*missing)


def test_an_unknown_model_is_told_the_names_of_those_that_are_shipped(cli, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    hint = refused("predict", "Once", "--model", tmp_path / "empty").split("hint: ")[1]
    assert all(name in hint for name in zoo.names()) and "a checkpoint folder" in hint
    done = cli("predict", "Once", "--model", tmp_path / "empty", "--json").json()
    assert done["error"]["type"] == "MissingFileError" and "induction" in done["error"]["hint"]
    described = " ".join(cli("predict", "--help").out.replace("│", " ").split())
    assert f"comes with jaxinterp: {', '.join(zoo.names())}." in described


@pytest.mark.parametrize("command", ["predict", "generate", "sites", "patch", "demo"])
def test_text_for_a_model_without_a_tokenizer_is_refused(refused, pair, tmp_path, command):
    prompt = {"predict": ("Once",), "generate": ("Once",), "sites": ("--prompt", "Once")}.get(command, ())
    options = (*(pair if command == "patch" else ()), *(() if prompt else ("--out", tmp_path / "o")))
    assert "the model induction has no tokenizer" in refused(command, *prompt, "--model", "induction", *options)


def test_a_place_that_can_not_be_written_is_refused_before_the_work(refused, stories, pair, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "file" in refused("patch", "--model", stories, *pair, "--out", tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "kept"


def test_errors_as_json(cli, stories):
    done = cli("predict", "", "--model", stories, "--json")
    assert done.code == 1
    error = done.json()["error"]
    assert error["type"] == "TokenError" and "empty" in error["message"] and error["hint"]


@pytest.fixture
def checkpoint(stories, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    for file in (folder, *folder.iterdir()):
        file.chmod(0o755)
    return folder


def tensors_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def truncated(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def huge_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def not_a_number(folder):
    from safetensors.numpy import save_file

    tensors = tensors_of(folder)
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, folder / "model.safetensors")


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def other_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def missing_shard(folder):
    names = dict.fromkeys(tensors_of(folder), "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "model.safetensors"),
        (huge_header, "model.safetensors"),
        (not_a_number, "q_proj"),
        (without_tokenizer, "tokenizer.json"),
        (other_architecture, "mamba"),
        (missing_shard, "model-00002-of-00002.safetensors"),
        (pickled, "safetensors"),
    ],
)
def test_broken_checkpoints(refused, checkpoint, damage, message):
    damage(checkpoint)
    assert message in refused("predict", "Once", "--model", checkpoint)
