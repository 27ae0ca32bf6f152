"""The commands on dictionaries, on one that is trained once: train, go on, judge, convert, and what must be refused."""

import json
import math
import signal
import time
from typing import get_args

import jax
import numpy as np
import pytest

import jaxinterp.cli
import jaxinterp.cli._cache
from jaxinterp import activations, saes, weights
from jaxinterp.cli import _output, _sae_eval, _sae_train
from tests.tiny import check_close, make_model, make_params

SMALL = ("--n-latents", 40, "--k", 2, "--batch-size", 32, "--learning-rate", 1e-2, "--site", "resid_post.1")


def options(folder, *more):
    return ["--model", folder / "model", "--text", folder / "ids.npy", *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without a tokenizer, token ids for it, and a dictionary that the command trained."""
    patch = pytest.MonkeyPatch()
    patch.setattr(jaxinterp.cli._cache, "keep_compiled_programs", lambda: None)
    folder = tmp_path_factory.mktemp("sae")
    model = make_model()
    weights.save(weights.LanguageModel(model=model, params=make_params(model)), folder / "model")
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 11, (60, 12)).astype(np.int32))
    train = ["sae", "train", *options(folder, *SMALL), "--steps", 60, "--log-every", 20, "--out", folder / "out"]
    assert jaxinterp.cli.main([str(argument) for argument in train]) == 0
    patch.undo()
    return folder


@pytest.fixture
def dictionary(folder):
    return folder / "out" / "dictionary"


def test_training_leaves_a_dictionary_metrics_and_where_it_came_from(folder, dictionary):
    sae = saes.load(dictionary)
    assert sae.config == saes.SAEConfig(
        architecture=saes.TopK(k=2), d_in=8, n_latents=40, site="resid_post.1", normalize="sqrt_d"
    )
    rows = saes.read_metrics(folder / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [20, 40, 60] and rows[-1]["fvu"] < rows[0]["fvu"]
    assert sae.source.config["model"] == str(folder / "model")
    assert sae.source.config["stream"]["sites"] == ["resid_post.1"]


def test_an_interrupted_run_says_how_to_go_on_and_the_same_command_does_to_the_bit(
    cli, folder, dictionary, monkeypatch
):
    command = ("sae", "train", *options(folder, *SMALL), "--steps", 60, "--log-every", 20, "--out", folder / "again")
    following, served = activations.ActivationStream.__next__, []

    def interrupting(stream):
        served.append(None)
        if len(served) == 7:
            signal.raise_signal(signal.SIGTERM)
        return following(stream)

    monkeypatch.setattr(activations.ActivationStream, "__next__", interrupting)
    before = signal.getsignal(signal.SIGTERM)
    done = cli(*command)
    assert "goes on" not in done.out
    assert done.code == 130 and "up to step 7" in done.err and "jaxinterp sae train" in done.err
    assert signal.getsignal(signal.SIGTERM) == before and not (folder / "again" / "dictionary").exists()
    told = cli(*command, "--json").json()
    assert (
        told["steps_before"] == 7
        and told["steps"] == 60
        and told["rows"] == 60 * 32
        and told["l0"] <= 2.0
        and len(served) == 60
    )
    assert cli(*command, "--json").json()["fvu"] == told["fvu"] and len(served) == 60  # nothing is left to do
    shown = cli(*command).out
    assert "it is finished already: nothing was trained" in shown and "goes on from" not in shown
    assert f"sae eval {folder / 'again' / 'dictionary'} --text OTHER_TEXT" in shown
    want, got = saes.load(dictionary), saes.load(folder / "again" / "dictionary")
    assert all(np.array_equal(want.params[name], got.params[name]) for name in want.params)


def test_a_folder_of_another_run_shows_the_difference(refused, folder):
    said = refused("sae", "train", *options(folder, *SMALL), "--steps", 60, "--b1", 0.5, "--out", folder / "out")
    assert "another run" in said and "b1: 0.9 there, 0.5 here" in said


def test_a_text_that_ends_stops_the_run_and_more_epochs_go_on(cli, refused, folder, tmp_path):
    train = ("sae", "train", *options(folder, *SMALL), "--steps", 60, "--out", tmp_path / "o")  # 720 rows in an epoch
    said = refused(*train, "--epochs", 2)
    assert "ran dry after 45 of 60 steps" in said and "more epochs" in said
    assert "from the 2 on that were begun" in refused(*train, "--epochs", 1)
    done = cli(*train, "--epochs", 3)
    assert done.code == 0 and "holds a run up to step 45" in done.out
    assert "passes over the text that were begun: 3" in done.out


def test_evaluation_stands_beside_its_controls(cli, folder, dictionary, monkeypatch):
    done = cli("sae", "eval", dictionary, *options(folder), "--tokens", 700, "--controls", "--json")
    assert done.code == 0, done.err
    told = done.json()
    own, random, mixed = told["dictionary"], told["random_dictionary"], told["random_weights"]
    assert own["fvu"] < 0.8 * random["fvu"] and own["fvu"] < 0.8 * mixed["fvu"]
    names = ("fvu", "l0", "dead", "cosine", "norm_ratio")
    assert all(math.isfinite(one[name]) for one in (own, random, mixed) for name in names)
    assert own["rows"] == random["rows"] == 720 and sum(own["density"]["counts"]) == 40
    nats = own["loss_recovered"]
    assert all(math.isfinite(nats[name]) for name in ("clean", "spliced", "zero", "mean"))
    assert nats["clean"] == random["loss_recovered"]["clean"] != mixed["loss_recovered"]["clean"]
    monkeypatch.setattr(_output, "SECONDS_BETWEEN_LINES", 0.0)
    shown = cli("sae", "eval", dictionary, *options(folder)[2:], "--tokens", 700)  # on the model of its training
    assert shown.code == 0 and "warning" not in shown.err and str(folder / "model") in shown.out
    assert "evaluating: random dictionary: 50%" in shown.err
    assert "the text ran out" not in shown.err and "the text that it was trained on" in shown.err
    np.save(folder / "others.npy", np.random.default_rng(1).integers(0, 11, (60, 12)).astype(np.int32))
    other = cli("sae", "eval", dictionary, "--text", folder / "others.npy", "--tokens", 64)
    assert other.code == 0 and "trained on" not in other.err
    assert "predictions: next tokens" in shown.out
    for told in (f"{own['fvu']:.4f}", f"{nats['spliced']:.3f}", "random dictionary", "never"):
        assert told in shown.out


def test_converting_there_and_back_is_exact(cli, dictionary, tmp_path):
    there = cli("sae", "convert", dictionary, tmp_path / "there", "--form", "saelens", "--json").json()
    assert there["read"]["made_by"] == "jaxinterp" and set(there["written"]["bytes"]) == {
        "cfg.json", "sae_weights.safetensors",
    }  # fmt: skip
    assert any("sqrt_d moved into the weights" in change for change in there["written"]["changed"])
    assert cli("sae", "convert", tmp_path / "there", tmp_path / "back").code == 0
    again = cli("sae", "convert", tmp_path / "back", tmp_path / "again", "--form", "saelens")
    assert "made by saelens" in again.out and "changed" not in again.out and "cfg.json" in again.out
    for name in there["written"]["bytes"]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    x = jax.random.normal(jax.random.key(1), (5, 8))
    check_close(saes.load(tmp_path / "back")(x), saes.load(dictionary)(x), 1e-5)


def test_pages_of_latents(cli, folder, dictionary, tmp_path):
    done = cli("sae", "page", dictionary, *options(folder), "--labels", "--out", tmp_path / "pages", "--json")
    assert done.code == 0, done.err
    assert "it has 720 tokens, where --tokens asks for 131,072" in done.err
    told = done.json()
    assert told["tokens"] == 720 and 0 < told["active"] <= 40 and told["files"] == [str(tmp_path / "pages/index.html")]
    assert "Latents of resid_post.1" in (tmp_path / "pages" / "index.html").read_text()


def test_mistakes_of_training(refused, folder, tmp_path):
    train = ("sae", "train", "--out", tmp_path / "o")
    small = options(folder, *SMALL)
    assert "k=50" in refused(*train, *small, "--k", 50) and "n_latents=40" in refused(*train, *small, "--k", 50)
    assert "nowhere.txt is not there" in refused(*train, *small, "--text", "nowhere.txt")
    assert "has no tokenizer" in refused(*train, *small, "--text", __file__)
    assert "0 to 2" in refused(*train, *small, "--site", "resid_post.9")
    assert "no site 'resid_pots'" in refused(*train, *small, "--site", "resid_pots.1")
    assert "is a folder" in refused(*train, *small, "--text", tmp_path)
    (tmp_path / "blank.jsonl").write_text("\n")
    assert f"error: {tmp_path}/blank.jsonl holds no document" in refused(
        *train, "--site", "resid_post.1", "--text", tmp_path / "blank.jsonl"
    )
    assert "as in resid_post.2" in refused(*train, *small, "--site", "resid_post.9")
    assert "--exclude 11" in refused(*train, *small, "--exclude", 11)
    assert "--n-ctx 99" in refused(*train, *small, "--n-ctx", 99)
    assert "--batch-size 0" in refused(*train, *small, "--batch-size", 0)
    assert "--epochs 0" in refused(*train, *small, "--epochs", 0)
    assert "widths=(50,)" in refused(*train, *small[:8], "--architecture", "matryoshka", "--widths", 50)
    assert not (tmp_path / "o").exists()


def test_mistakes_of_evaluation_and_conversion(refused, cli, folder, dictionary, tmp_path):
    said = cli("sae", "eval", dictionary, *options(folder), "--site", "mlp.post.1").err
    assert "--site mlp.post.1 is taken, and the files of" in said and "say resid_post.1" in said
    assert "'mlp.post.1' is 12 wide" in said and "reads 8 numbers" in said
    assert "no-such-folder" in refused("sae", "eval", tmp_path / "no-such-folder", *options(folder))
    assert "'sealens'" in refused("sae", "convert", dictionary, tmp_path / "o", "--form", "sealens")
    said = refused("sae", "convert", dictionary, dictionary)
    assert "nothing was written" in said and "--overwrite replaces OUT" in said
    assert "no transcoder" in refused("sae", "convert", dictionary, tmp_path / "o", "--target", "mlp.out.1")
    done = cli("sae", "eval", dictionary, "--model", "induction", "--text", folder / "ids.npy")
    assert done.code == 1 and "8 numbers" in done.err


def test_another_model_of_the_same_width_is_noted(cli, folder, dictionary, tmp_path):
    other = make_model(n_heads=2)
    weights.save(weights.LanguageModel(model=other, params=make_params(other)), tmp_path / "other")
    done = cli("sae", "eval", dictionary, "--model", tmp_path / "other", "--text", folder / "ids.npy", "--tokens", 64)
    assert done.code == 0 and "warning: its model in training" in done.err
    same = make_model()
    weights.save(weights.LanguageModel(model=same, params=make_params(same, seed=1)), tmp_path / "same")
    done = cli("sae", "eval", dictionary, "--model", tmp_path / "same", "--text", folder / "ids.npy", "--tokens", 64)
    assert f"({folder / 'model'}) had other weights than the one here ({tmp_path / 'same'})" in done.err


def test_a_dictionary_of_saelens_names_its_model(cli, folder, dictionary, tmp_path):
    assert cli("sae", "convert", dictionary, tmp_path / "there", "--form", "saelens").code == 0
    path = tmp_path / "there" / "cfg.json"
    config = json.loads(path.read_text())
    for name, warned in (("gpt2-small", True), ("owner/Model", False)):
        path.write_text(json.dumps(config | {"metadata": config["metadata"] | {"model_name": name}}))
        done = cli("sae", "eval", tmp_path / "there", *options(folder), "--tokens", 64)
        assert done.code == 0 and ("its files name the model gpt2-small" in done.err) == warned


def test_a_transcoder_with_excluded_tokens_is_judged_without_their_rows(cli, folder, tmp_path):
    sites = ("--site", "mlp.in.1", "--target", "mlp.out.1", "--exclude", 3, 4)
    train = ("sae", "train", *options(folder), *sites, "--n-latents", 16, "--k", 2, "--batch-size", 32, "--steps", 2)
    assert cli(*train, "--out", tmp_path / "o").code == 0
    assert saes.load(tmp_path / "o" / "dictionary").source.config["stream"]["exclude"]["tokens"] == [3, 4]
    done = cli("sae", "eval", tmp_path / "o" / "dictionary", "--text", folder / "ids.npy", "--json")
    told, ids = done.json(), np.load(folder / "ids.npy")
    assert told["dictionary"]["rows"] == np.sum((ids != 3) & (ids != 4)) and "the text ran out" in done.err
    assert any("the text ran out" in remark for remark in told["remarks"])
    assert math.isfinite(told["dictionary"]["loss_recovered"]["spliced"])


def test_more_than_all_of_the_loss_is_remarked(dictionary):
    nats = saes.LossRecovered(clean=3.0, spliced=2.5, zero=5.0, mean=5.0, tokens=9, touched=8)
    rows = saes.evaluate(saes.load(dictionary), np.ones((9, 8), np.float32))
    (remark,) = _sae_eval._remarks({"dictionary": _sae_eval.Judged(rows=rows, loss=nats)}, 9)
    assert "more than 100%" in remark


def test_lines_tell_of_training_where_there_is_no_bar(folder, monkeypatch, capsys):
    monkeypatch.setattr(_sae_train, "SECONDS_BETWEEN_LINES", 0.01)
    with _sae_train._lines(folder / "out" / "metrics.jsonl", 60, _output.Output(as_json=False)):
        time.sleep(0.3)
    assert capsys.readouterr().err.startswith("step 60 of 60: loss ")


def test_an_option_of_another_architecture_says_of_which(cli):
    done = cli("sae", "train", "--text", "x", "--l1-coefficient", 3)
    assert done.code == 2 and "option of --architecture relu, gated, and not of topk" in done.err
    done = cli("sae", "train", "--text", "x", "--architecture", "matryoshka")
    assert done.code == 2 and "--architecture matryoshka --help" in done.err


def test_every_architecture_can_be_named():
    assert set(get_args(_sae_train.Kind)) == set(saes.ARCHITECTURES)
