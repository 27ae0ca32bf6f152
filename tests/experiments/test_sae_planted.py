"""The experiment on planted dictionaries: one ensemble at its smallest, and the kept numbers against the targets."""

import json
from pathlib import Path

import pytest

from experiments.sae_planted import run
from jaxinterp import saes

RESULTS = Path(run.__file__).parent / "results.json"


def test_an_ensemble_at_its_smallest(monkeypatch):
    for name, value in {"G": 24, "WIDTH": 12, "ACTIVE": 2.0, "BATCH": 64}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setitem(run.KINDS, "hierarchy", {"parents": [-1] * 12 + list(range(12))})
    setting = run.Setting(smoke=True)
    topk = saes.TopK(k=3, auxiliary=None)
    got = run.seeds_of(setting, topk, n_latents=24, steps=1000, rate=4e-3, kind="hierarchy")
    assert got["steps"] == 20 and len(got["seeds"]) == 1 and got["architecture"]["name"] == "topk"
    assert got["mean"]["random_mmcs"] < got["mean"]["data_mmcs"] and 0 < got["mean"]["fvu"] < got["mean"]["random_fvu"]
    assert {"absorption_absorbed", "amplitude_ratio", "norm_ratio", "dead"} <= set(got["mean"])
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("size", ["m256", "m512"])
def test_the_kept_numbers_reach_the_targets_in_each_seed(size):
    kept = json.loads(RESULTS.read_text())["topk"][size]
    assert len(kept["seeds"]) == 5
    for row in kept["seeds"]:
        assert row["mmcs"] > 0.98 and row["hungarian_recall"] > 0.95 and row["precision"] > 0.9
        assert row["random_mmcs"] < 0.4
