"""The ladder of dictionaries on a real model: one dictionary at its smallest, and the kept table beside its controls."""

import json
from pathlib import Path

import pytest

from experiments.markdown import filled
from experiments.sae_ladder import run, summary
from jaxinterp import saes

RESULTS = Path(run.__file__).parent / "results.json"


@pytest.fixture(scope="module")
def kept():
    return json.loads(RESULTS.read_text())


def test_a_dictionary_at_its_smallest(shared, monkeypatch):
    monkeypatch.setattr(run, "N_LATENTS", 48)
    setting = run.Setting(str(shared / "stories260k"), str(shared / "tinystories.txt"), smoke=True)
    assert not set(setting.held_out) & set(setting.train)
    [sae], _ = run.train(setting, [setting.config(saes.TopK(k=2), n_latents=48)])
    row = run.measure(setting, sae)
    assert row["kind"] == "topk" and row["site"] == "resid_post.2" and 0 < row["l0"] <= 2
    assert row["clean"] < row["spliced"] < row["zero"] and row["described"] >= row["described_shuffled"]
    assert set(row["random"]) == {"fvu", "over_zero", "over_mean", "described"}
    json.dumps(row, allow_nan=False)


def test_each_dictionary_is_better_than_a_random_one(kept):
    rows = [*kept["sparsity"]["trained"], *kept["layers"]["rows"], *kept["size"]["rows"], *kept["steps"]["rows"]]
    rows += [row for name, family in kept["families"].items() if name in run.FAMILIES for row in family]
    assert len(rows) >= 10
    for row in rows:
        assert row["fvu"] < row["random"]["fvu"] and row["over_zero"] > row["random"]["over_zero"], row
        assert row["described_shuffled"] == 0
    no_more = [row for row in rows if row["described"] <= row["random"]["described"]]
    assert no_more == [kept["sparsity"]["trained"][-1]] and no_more[0]["l0"] == 32  # as the page says


def test_the_page_has_the_kept_numbers(kept):
    page, tables = (RESULTS.parent / "README.md").read_text(), summary.tables(kept)
    assert filled(page, tables) == page and page.count("<!-- end -->") == len(tables) == 7


def test_predicates_describe_the_trained_model_better_than_one_of_random_weights(kept):
    for row, control in zip(kept["sparsity"]["trained"], kept["sparsity"]["random weights"], strict=True):
        assert row["l0"] == pytest.approx(control["l0"], rel=0.05)
        assert row["described"] > control["described"]
