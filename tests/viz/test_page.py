import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxinterp import InputError, SaveError
from jaxinterp.viz import sweep_page

TOKENS = ["<s>", " Lily", "</script>", " \"&'"]


class Parsed(html.parser.HTMLParser):
    """Elements and text of a page; a closing tag that closes nothing is an error."""

    VOID = ("meta", "link", "img", "br", "hr", "input", "wbr")

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.texts, self.script = [], [], [], {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script[len(self.script)] = data
        else:
            self.texts.append(data)

    def cells(self):
        return [a for tag, a in self.elements if tag == "rect" and "data-i" in a]


def test_the_page_holds_every_value_and_names_its_cells(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (3, 4), by_prompt=8)
    parsed = Parsed(sweep_page(effects, tmp_path / "effects.html"))
    views = json.loads(parsed.script[0])["views"]
    assert [one["value"] for one in views] == ["normalized", "effect"]
    np.testing.assert_allclose(views[0]["values"], effects["normalized"].values.ravel(), rtol=1e-4)
    np.testing.assert_allclose(views[1]["effects"], effects["effect"].values.ravel(), rtol=1e-4)
    np.testing.assert_allclose(views[0]["byPrompt"], effects["effect_by_prompt"].values.reshape(12, 8), rtol=1e-4)
    assert views[0]["names"][5] == "L1.H1" and views[0]["base"] == -2.0
    assert len(parsed.cells()) == 2 * 12
    top = int(np.abs(effects["effect"].values).argmax())
    assert views[0]["top"] == top
    largest = parsed.cells()[top]
    assert float(largest["style"].removeprefix("--v:")) == 1.0
    assert ("neg" in largest["class"]) == (effects["effect"].values.ravel()[top] < 0)


def test_the_page_asks_nothing_of_a_network(make_effects, tmp_path):
    source = sweep_page(make_effects(("layer", "head"), (3, 4)), tmp_path / "effects.html").read_text()
    assert not re.findall(r"https?:|//[a-z]|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest", source)
    parsed = Parsed(tmp_path / "effects.html")
    assert not [(tag, a) for tag, a in parsed.elements if "src" in a or "href" in a]
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_provenance_ranking_notes_and_prompts_are_on_the_page(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (3, 4), revision="abc123", jax="9.9.9")
    command = 'jaxinterp patch --correct " She"'
    made = sweep_page(
        effects, tmp_path / "a.html", title="Pronouns", notes=["What was <found>."], prompts=[("Tim ran.", "Lily ran.")],
        provenance={"device": "cpu"}, command=command,
    )  # fmt: skip
    text = " ".join(Parsed(made).texts)
    for expected in (
        "Pronouns", "What was <found>.", "abc123", "9.9.9", "cpu", "BOS prepended", command, "Tim ran.", "Lily ran.",
        "base −2.00 logits", "source 3.00 logits",
    ):  # fmt: skip
        assert expected in text, expected
    assert re.search(r"BOS prepended\s+yes", text)
    strongest = int(np.abs(effects["effect"].values).argmax())
    assert re.search(rf"rank.* 1 +L{strongest // 4}\.H{strongest % 4} ", text)


def test_tokens_can_not_break_out_of_the_page(make_effects, tmp_path):
    effects = make_effects(("layer", "position"), (2, 4), tokens=TOKENS)
    pattern = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    parsed = Parsed(sweep_page(effects, tmp_path / "a.html", patterns={"<b>L0</b>": pattern}, tokens=TOKENS))
    assert len(parsed.script) == 2
    assert json.loads(parsed.script[0])["views"][0]["names"][2] == "L0 </script>@2"
    assert "<b>L0</b>" in parsed.texts
    looks = [a for tag, a in parsed.elements if a.get("class") == "look"]
    assert len(looks) == 10 and looks[1]["data-p"] == "0.5000"


def test_several_metrics_three_axes_and_bars(make_effects, tmp_path):
    effects = make_effects(("layer", "head", "position"), (2, 2, 3), metrics=["logit difference", "KL divergence"])
    parsed = Parsed(sweep_page(effects, tmp_path / "a.html"))
    assert len(json.loads(parsed.script[0])["views"]) == 4
    assert {int(a["data-i"]) for a in parsed.cells()} == set(range(12))
    assert {"layer 0", "layer 1", "KL divergence, effect in nats"} <= set(parsed.texts)
    bars = Parsed(sweep_page(make_effects(("layer",), (5,)), tmp_path / "b.html"))
    assert all("bar" in a["class"] for a in bars.cells()) and len(bars.cells()) == 10


def test_an_undefined_normalization_gives_raw_effects_alone(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (2, 2), base=1.0, source=1.0)
    effects["effect"].values[0, 0] = np.nan
    views = json.loads(Parsed(sweep_page(effects, tmp_path / "a.html")).script[0])["views"]
    assert [one["value"] for one in views] == ["effect"] and views[0]["effects"][0] is None


def test_an_ablation_has_no_source(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (2, 2), op="zero").drop_vars(["source", "normalized"])
    parsed = Parsed(sweep_page(effects, tmp_path / "a.html"))
    (view,) = json.loads(parsed.script[0])["views"]
    assert view["source"] is None and view["normalized"] == [None] * 4
    assert "Logit difference after zeroing attn.z" in parsed.texts and not any("source" in t for t in parsed.texts[4:9])


def test_it_is_small(make_effects, tmp_path):
    assert sweep_page(make_effects(("layer", "head"), (12, 12)), tmp_path / "a.html").stat().st_size < 150_000


def test_patterns_that_do_not_fit_and_a_folder_that_is_a_file_are_errors(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (2, 2))
    with pytest.raises(InputError, match="there are 2 tokens"):
        sweep_page(effects, tmp_path / "a.html", patterns={"L0": np.eye(3)}, tokens=["a", "b"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError):
        sweep_page(effects, tmp_path / "file" / "a.html")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_parses(make_effects, tmp_path):
    script = tmp_path / "page.js"
    script.write_text(Parsed(sweep_page(make_effects(("layer", "head"), (2, 2)), tmp_path / "a.html")).script[1])
    done = subprocess.run(["node", "--check", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PROBE = """
const root = document.querySelector('.view.on');
const cell = (i) => root.querySelector(`rect[data-i="${i}"]`);
const name = () => root.querySelector('.reading .name').textContent;
const effect = () => root.querySelector('.reading dd').textContent;
said.push(name(), effect());
cell(5).dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
said.push(name());
root.querySelector('svg[data-range]').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true}));
said.push(name());
cell(2).dispatchEvent(new MouseEvent('click', {bubbles: true}));
root.dispatchEvent(new MouseEvent('mouseleave'));
said.push(name(), root.querySelectorAll('.pinned').length > 0);
const chooser = document.getElementById('prompt');
chooser.value = '3';
chooser.dispatchEvent(new Event('change'));
said.push(+cell(5).style.getPropertyValue('--v'), effect(), getComputedStyle(root.querySelector('.frame')).display);
document.querySelector('[data-show="1"]').click();
said.push(document.querySelector('.view.on').dataset.view, document.querySelectorAll('.view.on').length);
"""


@pytest.mark.slow
def test_in_a_browser_cells_are_read_pinned_and_shown_by_prompt(make_effects, tmp_path, ask_browser):
    effects = make_effects(("layer", "head"), (3, 4), by_prompt=8, draws=3)
    said = ask_browser(sweep_page(effects, tmp_path / "a.html"), PROBE)
    values = effects["effect"].values.ravel()
    top = int(np.abs(values).argmax())
    assert said[0] == f"L{top // 4}.H{top % 4}"
    assert said[1] == f"{values[top]:.3f} logits".replace("-", "−")
    assert said[2:4] == ["L1.H1", "L2.H1"]  # the pointer, then one row down
    assert said[4:6] == ["L0.H2", True]
    one = effects["effect_by_prompt"].values[..., 3].ravel()
    assert said[6] == pytest.approx(np.abs(one)[5] / np.abs(one).max(), abs=2e-4)
    assert said[7] == f"{one[2]:.3f} logits".replace("-", "−")  # the pinned cell, in that prompt
    assert said[8] == "none"  # the null is of means, so its marks go
    assert said[9:] == ["1", 1]


READ_ALL = """
const root = document.querySelector('.view.on');
for (let i = 0; i < data.views[0].names.length; i++) {
  read(0, i);
  said.push(root.querySelector('.reading').textContent);
}
const bar = (i) => root.querySelector(`rect[data-i="${i}"]`);
said.push([0, 1, 2].map((i) => +bar(i).getAttribute('height')));
const chooser = document.getElementById('prompt');
chooser.value = '1';
chooser.dispatchEvent(new Event('change'));
said.push([0, 1, 2].map((i) => +bar(i).getAttribute('height')));
"""


@pytest.mark.slow
def test_in_a_browser_intervals_and_the_null_are_read_and_bars_follow_the_prompt(make_effects, tmp_path, ask_browser):
    listed = {"layer": [0, 2, "3+1"], "head": [1, 0, "5+7"]}
    effects = make_effects(("cell",), (3,), by_prompt=2, draws=4, interval=True, listed=listed)
    effects["effect"].values[:] = [0.01, 2.0, -1.0]
    for name in ("low", "high", "null"):
        effects[name].values[:] = np.round(effects[name].values, 2)
    effects["normalized"].values[:] = effects["effect"].values / 5
    *told, heights, single = ask_browser(sweep_page(effects, tmp_path / "a.html"), READ_ALL)
    for i, (name, text) in enumerate(zip(["L0.H1", "L2.H0", "L3.H5 + L1.H7"], told, strict=True)):
        null = effects["null"].values[:, i]
        for expected in (
            name, f"{effects['low'].values[i]:.3f} to {effects['high'].values[i]:.3f} logits",
            f"{null.min():.3f} to {null.max():.3f} logits in 4 draws", "inside" if i == 0 else "outside",
        ):  # fmt: skip
            assert expected.replace("-", "−") in text, (expected, text)
    np.testing.assert_allclose(np.array(heights) / heights[1], [0.005, 1.0, 0.5], atol=1e-3)
    one = np.abs(effects["effect_by_prompt"].values[:, 1])
    np.testing.assert_allclose(np.array(single) / heights[1], one / 2.0, rtol=1e-3)


def test_cells_inside_the_null_are_marked_and_the_page_says_by_which_rule(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (3, 4), draws=5, interval=True, null="prompts")
    made = sweep_page(effects, tmp_path / "a.html")
    views = json.loads(Parsed(made).script[0])["views"]
    limit = np.abs(effects["null"].values).max()
    inside = np.abs(effects["effect"].values) <= limit
    assert 0 < inside.sum() < 12
    assert views[0]["inside"] == inside.ravel().astype(int).tolist()
    np.testing.assert_allclose(views[0]["nulls"], effects["null"].values.reshape(5, 12).T, rtol=1e-4)
    np.testing.assert_allclose(views[0]["low"], effects["low"].values.ravel(), rtol=1e-4, atol=1e-6)
    source = made.read_text()
    frames = re.findall(r'class="edge" d="([^"]*)"', source)
    assert [one.count("M") for one in frames] == [inside.sum()] * 2  # one drawing normalized, one raw
    small, whole = float(re.search(r"h([\d.]+)", frames[0])[1]), float(Parsed(made).cells()[0]["width"]) + 1.5
    assert small == pytest.approx(whole / 2, abs=0.1)
    text = " ".join(Parsed(made).texts)
    assert f"{(~inside).sum()} of the cells drawn lie outside" in text and "at most 1 of 6 sweeps" in text
    assert "5 draws of the null (prompts) over all 12 cells" in text and "95 % interval" in text
    assert "Against the null" not in sweep_page(make_effects(("layer",), (3,)), tmp_path / "b.html").read_text()


def test_several_sites_have_a_panel_each_and_share_their_bars_scale(make_effects, tmp_path):
    sites = ["resid_pre", "mlp.out"]
    effects = make_effects(("site", "layer"), (2, 3), sites=sites, draws=2, by_prompt=2, interval=True)
    parsed = Parsed(sweep_page(effects, tmp_path / "a.html"))
    drawings = [a for tag, a in parsed.elements if tag == "svg" and "data-pixels" in a]
    assert len(drawings) == 4 and len({a["data-pixels"] for a in drawings[:2]}) == 1
    assert {"resid_pre", "mlp.out"} <= set(parsed.texts)
    assert json.loads(parsed.script[0])["views"][0]["names"][4] == "mlp.out L1"


def test_the_prompts_stand_beside_what_the_model_makes_of_them(make_effects, tmp_path):
    effects = make_effects(("layer", "head"), (2, 2), by_prompt=2)
    effects["base_by_prompt"].values[:] = [-1.25, 4.5]
    prompts = [("Tim ran.", "Lily ran."), ("Max sat.", "Sue sat.")]
    text = " ".join(Parsed(sweep_page(effects, tmp_path / "a.html", prompts=prompts)).texts)
    assert re.search(r"logit difference, base .*Tim ran\. +Lily ran\. +−1\.250 .*Sue sat\. +4\.500", text)
