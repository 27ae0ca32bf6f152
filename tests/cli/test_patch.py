import json

import numpy as np
import pytest
import xarray as xr

import jaxinterp as ji
from jaxinterp import patching, tasks

LINES = (
    {"clean": "One day, Lily had an idea.", "corrupt": "One day, Tim had an idea.", "roles": {"name": "Lily"}},
    {"clean": "Lily was sad.", "corrupt": "Tim was sad.", "roles": {"name": "Lily"}},
)


@pytest.fixture(scope="module")
def lm(shared):
    return ji.load(shared / "stories260k")


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line | {"correct": " She", "wrong": " He"}) + "\n" for line in LINES))
    return path


def test_one_pair_gives_the_sweep_of_the_api_in_three_files(cli, stories, pair, lm, tmp_path):
    done = cli("patch", "--model", stories, *pair, "--over", "layer,head", "--out", tmp_path / "out", "--top", 3)
    assert done.code == 0, done.err
    clean, corrupt, correct, wrong = pair[1::2]
    pairs = tasks.pairs_from_text(lm.tokenizer, clean=[clean], corrupt=[corrupt], correct=[correct], wrong=[wrong])
    expected = patching.sweep(
        lm.model, lm.params, base=pairs.corrupt, source=pairs.clean, site="attn.z", over="layer,head", progress=False,
        metric=patching.logit_difference(pairs.correct, pairs.wrong, pairs.answer_position),
    )  # fmt: skip
    with xr.open_dataset(tmp_path / "out" / "effects.nc", engine="h5netcdf") as saved:
        np.testing.assert_allclose(saved["effect"].squeeze().values, expected["effect"].values, rtol=1e-5, atol=1e-6)
        assert saved.attrs["model"] == str(stories) and saved.attrs["prepend_bos"] == 1
        assert saved.attrs["command"].startswith("jaxinterp patch --model") and "' She'" in saved.attrs["command"]
        assert saved.attrs["direction"] == "denoise" and saved.attrs["created"]
    assert (tmp_path / "out" / "effects.png").read_bytes()[:4] == b"\x89PNG"
    assert "Lily had an idea." in (tmp_path / "out" / "effects.html").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["effects.html", "effects.nc", "effects.png"]
    top = int(np.abs(expected["effect"].values).argmax())
    row = f"L{top // 8}.H{top % 8} +{expected['effect'].values.ravel()[top]:+.3f}"
    assert "BOS '<s>' is prepended" in done.out and "effects.html" in done.out
    assert any(line.split()[:2] == ["1", f"L{top // 8}.H{top % 8}"] for line in done.out.splitlines()), row


def test_json_holds_the_ranking_and_nothing_else_is_printed(cli, stories, pair, tmp_path):
    done = cli(
        "patch", "--model", stories, *pair, "--over", "layer,position", "--metric", "logit_difference", "probability_difference",
        "--out", tmp_path, "--top", 2, "--json",
    )  # fmt: skip
    assert done.code == 0 and done.err == ""
    result = done.json()
    assert [metric["metric"] for metric in result["metrics"]] == ["logit difference", "probability difference"]
    first = result["metrics"][0]["ranked"]
    assert (
        len(first) == 2
        and abs(first[0]["effect"]) >= abs(first[1]["effect"])
        and {"layer", "position"} <= set(first[0])
    )
    assert "·Lily@4" in first[0]["cell"] or "·Tim@4" in first[0]["cell"] or first[0]["position"] == 12
    assert result["site"] == "resid_pre" and len(result["files"]) == 3


def test_a_file_of_pairs_of_different_lengths_with_roles(cli, stories, jsonl, tmp_path):
    done = cli("patch", "--model", stories, "--pairs", jsonl, "--over", "layer,role", "--out", tmp_path / "o", "--json")
    assert done.code == 0, done.err
    assert done.json()["n_prompts"] == 2
    with xr.open_dataset(tmp_path / "o" / "effects.nc", engine="h5netcdf") as saved:
        assert saved["role"].values.tolist() == ["name", "end"]
        normalized = saved["normalized"].squeeze().values
        np.testing.assert_allclose(normalized[0], [1.0, 0.0], atol=1e-4)  # at layer 0 all of it is at the name


def test_noise_is_the_other_direction_and_zero_needs_no_other_prompt(cli, stories, pair, tmp_path):
    ends = {}
    for direction in ("denoise", "noise"):
        options = ("--direction", direction, "--over", "layer", "--site", "attn.out", "--json")
        result = cli("patch", "--model", stories, *pair, *options, "--out", tmp_path).json()
        ends[direction] = (result["metrics"][0]["base"], result["metrics"][0]["source"])
    assert ends["denoise"] == pytest.approx(ends["noise"][::-1]) and ends["denoise"][0] < 0 < ends["denoise"][1]
    done = cli(
        "patch",
        "--model",
        stories,
        *pair,
        "--op",
        "zero",
        "--site",
        "mlp.out",
        "--over",
        "layer",
        "--out",
        tmp_path,
        "--json",
    )
    assert done.code == 0 and len(done.json()["metrics"][0]["ranked"]) == 5


@pytest.mark.parametrize(
    ("options", "run", "direction", "words"),
    [
        ((), "corrupt", "denoise", "the corrupt prompts, with attn.out replaced by what it is in the clean prompts"),
        (("--direction", "noise"), "clean", "noise", "replaced by what it is in the corrupt prompts"),
        (("--op", "zero"), "clean", "noise", "the clean prompts, with attn.out set to zero"),
        (("--op", "mean"), "clean", "noise", "the clean prompts, with attn.out replaced by its mean"),
        (("--op", "zero", "--direction", "denoise"), "corrupt", "denoise", "the corrupt prompts, with attn.out set to"),
    ],
)
def test_ablations_are_of_the_clean_prompts_and_what_runs_is_said(
    cli, stories, pair, lm, tmp_path, options, run, direction, words
):
    options = ("patch", "--model", stories, *pair, "--over", "layer", "--site", "attn.out", "--out", tmp_path, *options)
    result = cli(*options, "--json").json()
    assert (result["run"], result["direction"]) == (run, direction)
    pairs = tasks.pairs_from_text(
        lm.tokenizer, **{name: [text] for name, text in zip(("clean", "corrupt", "correct", "wrong"), pair[1::2], strict=True)}
    )  # fmt: skip
    last = np.asarray(lm.model.forward(lm.params, getattr(pairs, run)))[0, -1]
    expected = float(last[pairs.correct[0, 0]] - last[pairs.wrong[0, 0]])
    assert result["metrics"][0]["base"] == pytest.approx(expected, abs=1e-4)
    assert words in cli(*options).out
    with xr.open_dataset(tmp_path / "effects.nc", engine="h5netcdf") as saved:
        assert saved.attrs["direction"] == direction


def test_a_subset_of_layers_and_heads(cli, stories, pair, tmp_path):
    done = cli("patch", "--model", stories, *pair, "--layers", 2, 4, "--heads", 2, 6, "--out", tmp_path, "--json")
    cells = {row["cell"] for row in done.json()["metrics"][0]["ranked"]}
    assert cells == {"L2.H2", "L2.H6", "L4.H2", "L4.H6"}


def test_a_plan_is_printed_and_nothing_is_run(cli, stories, pair, tmp_path):
    done = cli("patch", "--model", stories, *pair, "--over", "layer,head", "--out", tmp_path / "out", "--plan")
    assert done.code == 0, done.err
    assert "cells that run" in done.out and "compiles" in done.out and "memory: budget" in done.out
    assert not (tmp_path / "out").exists()
    told = json.loads(
        cli("patch", "--model", stories, *pair, "--over", "layer,head", "--plan", "--memory", 0.5, "--json").out
    )
    assert told["n_cells"] == 40 and told["flops"] < told["flops_whole_forwards"] and told["budget"] == 2**29


def test_a_budget_that_holds_no_cell_names_one_that_does(cli, stories, pair, tmp_path):
    done = cli("patch", "--model", stories, *pair, "--memory", 1e-6, "--out", tmp_path / "out")
    assert done.code == 1 and "smallest that works" in done.err


def test_finished_cells_are_kept_and_gone_on_from(cli, stories, pair, tmp_path):
    call = ("patch", "--model", stories, *pair, "--over", "layer,head", "--out", tmp_path / "out", "--resume", "--json")
    first, again = cli(*call), cli(*call)
    assert first.code == again.code == 0, again.err
    assert json.loads(first.out)["metrics"] == json.loads(again.out)["metrics"]
    assert {p.name for p in (tmp_path / "out" / "cells").iterdir()} >= {"manifest.json", "values.npy", "done.log"}
    other = cli(*call, "--op", "zero")
    assert other.code == 1 and "another computation" in other.err
    assert "op" in other.err


def test_a_null_distribution_is_drawn(cli, stories, pair, tmp_path):
    done = cli(
        "patch", "--model", stories, *pair, "--over", "layer,head", "--out", tmp_path / "out", "--null", "directions"
    )
    assert done.code == 0, done.err
    with xr.open_dataset(tmp_path / "out" / "effects.nc", engine="h5netcdf") as saved:
        assert saved["null"].sizes["draw"] == 10 and {"low", "high"} <= set(saved)
