import base64
import json
import re

import numpy as np
import pytest

from jaxinterp import InputError
from jaxinterp.viz import attention_page

TOKENS = ["<s>", " Lily", "</script>", " \"&'"]


def patterns(layers=2, heads=3, n=4, causal=True, batch=None):
    shape = (layers, *(() if batch is None else (batch,)), heads, n, n)
    weights = np.random.default_rng(0).uniform(0.1, 1, size=shape)
    weights = np.tril(weights) if causal else weights
    return weights / weights.sum(-1, keepdims=True)


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])


@pytest.mark.parametrize("causal", [True, False])
def test_the_page_holds_every_probability(tmp_path, causal):
    given = patterns(causal=causal)
    given[1, 2, 3, 0] = np.nan
    data = data_of(attention_page(given, TOKENS, tmp_path / "a.html"))
    assert data["causal"] is causal and data["tokens"] == ["<s>", "·Lily", "</script>", "·\"&'"]
    whole = np.frombuffer(base64.b64decode(data["patterns"]), "<u2").astype(float)
    held = np.where(whole > data["whole"], np.nan, whole / data["whole"])
    want = [given[layer, head, q, k] for layer in range(2) for head in range(3) for q in range(4)
            for k in range(q + 1 if causal else 4)]  # fmt: skip
    np.testing.assert_allclose(held, want, atol=1e-5)


def test_a_capture_gives_the_example_asked_for_and_layers_keep_their_numbers(tmp_path):
    given = patterns(batch=5)
    whole = data_of(attention_page(given, TOKENS, tmp_path / "a.html", example=3, layers=[7, 9]))
    assert whole["layers"] == ["7", "9"] and whole["heads"] == 3
    assert whole["patterns"] == data_of(attention_page(given[:, 3], TOKENS, tmp_path / "b.html"))["patterns"]


def test_the_page_is_small_and_asks_nothing_of_a_network(tmp_path):
    n = 32
    made = attention_page(
        patterns(12, 12, n, causal=False), ["x"] * n, tmp_path / "a.html", title="<b>", notes=["1 < 2"]
    )
    source = made.read_text()
    assert len(source) < 500_000
    assert not re.findall(
        r"https?:|//[a-z]|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest", source.split('id="data"')[0]
    )
    assert "default-src 'none'" in source and "<h1>&lt;b&gt;</h1>" in source and "1 &lt; 2" in source


@pytest.mark.parametrize(
    ("given", "tokens", "more", "message"),
    [
        (patterns()[0, 0], TOKENS, {}, "use viz.attention"),
        (patterns(), TOKENS[:3], {}, "there are 3 tokens"),
        (patterns()[..., :3], TOKENS, {}, "there are 4 tokens"),
        (patterns() * 9, TOKENS, {}, "not 'attn.scores'"),
        (patterns(batch=2), TOKENS, {"example": 2}, "hold 2 examples, 0 to 1"),
        (patterns(), TOKENS, {"example": 1}, "no batch axis"),
        (patterns(), TOKENS, {"layers": [1]}, "1 numbers of layers for patterns of 2 layers"),
        (np.zeros((1, 1, 129, 129)), ["a"] * 129, {}, "at most 128"),
        (np.zeros((16, 16, 128, 128)), ["a"] * 128, {}, r"Choose some of the 16 layers"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, given, tokens, more, message):
    with pytest.raises(InputError, match=message):
        attention_page(given, tokens, tmp_path / "a.html", **more)
    assert not list(tmp_path.iterdir())


PROBE = """
const chosen = () => document.querySelector('#grid button[aria-pressed="true"]').title;
const pressed = (id, key) => document.getElementById(id).dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const told = () => document.getElementById('said').textContent;
said.push(chosen(), document.getElementById('name').textContent, told());
document.querySelector('#grid button[title="L1.H1"]').click();
said.push(chosen(), location.hash);
pressed('grid', 'ArrowRight'); pressed('grid', 'ArrowUp');
said.push(chosen());
document.querySelectorAll('#looks span')[2].dispatchEvent(new MouseEvent('mouseenter'));
const shaded = (id) => [...document.querySelectorAll(`#${id} span`)].map((one) => +one.style.getPropertyValue('--v'));
said.push(told(), shaded('looks'), shaded('looked'));
pressed('looks', 'ArrowLeft'); pressed('large', 'ArrowLeft');
said.push(told());
const box = large.getBoundingClientRect();
const point = (q, k) => large.dispatchEvent(new MouseEvent('mousemove', {
  clientX: box.left + layout.left + (k + 0.5) * layout.side, clientY: box.top + (q + 0.5) * layout.side, bubbles: true}));
point(3, 1);
said.push(told());
const context = large.getContext('2d');
const pixel = (q, k) => [...context.getImageData((layout.left + (k + 0.5) * layout.side) * devicePixelRatio,
  (q + 0.5) * layout.side * devicePixelRatio, 1, 1).data].slice(0, 3);
const small = document.querySelector('#grid canvas').getContext('2d').getImageData(1, 2, 1, 1).data[0];
said.push(pixel(2, 0), shade(look(head, 2, 0)), small, shade(look(0, 2, 1))[0]);
"""


@pytest.mark.slow
def test_in_a_browser_heads_and_tokens_are_chosen_by_pointer_and_keys(tmp_path, ask_browser):
    given = patterns()
    said = ask_browser(attention_page(given, TOKENS, tmp_path / "a.html"), PROBE, "#L1.H2@1")
    assert said[:2] == ["L1.H2", "L1.H2"] and said[2].startswith("·Lily (1) looks at ")
    assert said[3] == "L1.H1" and said[4] in ("#L1.H1@1", "#L1.H2@1")
    assert said[5] == "L0.H2"
    one = given[0, 2]
    strongest = int(one[2].argmax())
    shown = ["<s>", "·Lily", "</script>", "·\"&'"]
    assert said[6].startswith(f"</script> (2) looks at {shown[strongest]} ({strongest}) {one[2, strongest]:.3f}")
    assert f"is looked at by </script> (2) {one[2, 2]:.3f}" in said[6] or f"·\"&' (3) {one[3, 2]:.3f}" in said[6]
    np.testing.assert_allclose(said[7], np.sqrt(one[2]), atol=1e-3)
    np.testing.assert_allclose(said[8], np.sqrt(one[:, 2]), atol=1e-3)
    assert said[9] == f"·Lily (1) looks at <s> (0): {one[1, 0]:.3f}"
    assert said[10] == f"·\"&' (3) looks at ·Lily (1): {one[3, 1]:.3f}"
    assert said[11] == said[12] and said[13] == said[14]
