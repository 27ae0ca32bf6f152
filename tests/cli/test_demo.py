import dataclasses

import jax
import pytest
import xarray as xr

import jaxinterp as ji

pytestmark = pytest.mark.slow
FEW = ("--n-search", 8, "--n-held-out", 12, "--n-random", 10)


def test_a_trained_model_tells_the_whole_story(cli, stories, tmp_path):
    done = cli("demo", "--model", stories, *FEW, "--out", tmp_path)
    assert done.code == 0, done.err
    words = " ".join(done.out.split())
    for expected in (
        "BOS '<s>' is prepended", "A model reads the beginning of a story", "Which heads carry the pronoun?", "normalized",
        "Looking is not carrying", "openings that the search never saw", "from He to She", "10 random sets of",
        "Found. Of the held-out prompts", "with L4.H2 from", "effects.html", "Next, with your own model", "jaxinterp patch",
    ):  # fmt: skip
        assert expected in words, expected
    assert "held-out prompts ..." in done.err  # progress, on the other stream
    with xr.open_dataset(tmp_path / "effects.nc", engine="h5netcdf") as saved:
        assert dict(saved["effect"].sizes) == {"layer": 5, "head": 8}
        assert saved.attrs["command"].startswith("jaxinterp demo") and saved.attrs["prepend_bos"] == 1
    page = (tmp_path / "effects.html").read_text()
    assert "Found. Of the held-out prompts" in page and 'class="look"' in page and "L4.H2" in page
    assert (tmp_path / "effects.png").stat().st_size > 10_000


def test_as_json_every_number_agrees_with_the_others(cli, stories, tmp_path):
    result = cli("demo", "--model", stories, *FEW, "--out", tmp_path, "--json").json()
    flips = result["flips"]
    assert result["found"] and result["verdict"].startswith("Found.")
    assert flips["all"]["count"] == flips["he_to_she"]["count"] + flips["she_to_he"]["count"]
    assert flips["all"]["low"] <= flips["all"]["count"] / flips["all"]["total"] <= flips["all"]["high"]
    assert len(result["control"]) == 10 and max(result["control"]) < flips["all"]["count"] / flips["all"]["total"]
    assert [4, 2] in result["heads"] and result["metrics"][0]["ranked"][0]["cell"] == "L4.H2"
    for one in result["continuations"]:
        said = {"plain": one["continuation"].split()[0], "patched": one["patched"].split()[0]}
        assert sorted(said.values()) == ["He", "She"], one


def test_on_random_weights_nothing_is_found(cli, stories, tmp_path):
    lm = ji.load(stories)
    ji.save(dataclasses.replace(lm, params=lm.model.init(jax.random.key(1))), tmp_path / "random")
    done = cli("demo", "--model", tmp_path / "random", *FEW, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    words = " ".join(done.out.split())
    assert "Nothing was found: the model does not do this task." in words
    assert "Found." not in words and ".H" in words
    assert "Nothing was found" in (tmp_path / "out" / "effects.html").read_text()


def test_the_model_that_comes_with_jaxinterp_is_the_default(cli, tmp_path):
    result = cli("demo", *FEW, "--out", tmp_path, "--json").json()
    assert result["model"] == "stories" and result["found"], result["verdict"]
    assert len(result["heads"]) > 1  # the card says that no single head carries the pronoun
