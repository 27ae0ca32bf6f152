import dataclasses
import json
import re

import numpy as np
import pytest

from jaxinterp import InputError, SaveError
from jaxinterp.saes import Contexts, LatentDescriptions, Predicates, Ranked
from jaxinterp.viz import latent_pages

N, V, BEFORE, W = 300, 12, 2, 5
TEXTS = [" dog", " cat", "</script>", "\n", "<0xE2>", "\u202eabc", " \"&'", "Tom", " run", " big", "\u2028", ""]
SHOWN = [
    " dog",
    " cat",
    "</script>",
    "⏎",
    "<0xE2>",
    "<U+202E>abc",
    " \"&'",
    "Tom",
    " run",
    " big",
    "<U+2028>",
    "<empty>",
]
BYTE = SHOWN.index("<0xE2>")
DEAD = 71


def contexts(rng, *lead):
    tokens = rng.integers(0, V, (*lead, W)).astype(np.int32)
    values = np.where(rng.random(tokens.shape) < 0.4, rng.random(tokens.shape), 0).astype(np.float32)
    values[..., BEFORE] = 0.5 + 0.5 * rng.random(lead)
    tokens[..., 0, 0] = -1  # a context at the beginning of its text
    values[tokens < 0] = 0
    tokens[DEAD], values[DEAD] = -1, 0
    tokens[0, ..., -1, :], values[0, ..., -1, :] = -1, 0  # one context fewer
    return Contexts(tokens=tokens, activations=values)


def make_descriptions(n_tokens=3, n=N):
    rng = np.random.default_rng(0)
    ranked = lambda m, of: Ranked(
        ids=rng.integers(0, of, (n, m)).astype(np.int32), values=np.sort(rng.random((n, m)).astype(np.float32))[:, ::-1]
    )
    top = contexts(rng, n, 3)
    rates = rng.random(n).astype(np.float32)
    counts = rng.integers(0, 50, (n, 64)).astype(np.int32)
    rates[DEAD] = counts[DEAD] = 0
    coactive = ranked(2, n)
    coactive.ids[5, 1] = -1
    return LatentDescriptions(
        rows=1000, firing_rate=rates, max_activation=top.activations[..., BEFORE].max(1), mean_activation=0.5 * rates,
        counts=counts, bin_width=np.full(n, 1 / 64, np.float32), top=top, quantiles=contexts(rng, n, 2, 2),
        promoted=ranked(n_tokens, V), suppressed=ranked(n_tokens, V), nearest=ranked(2, n), coactive=coactive,
        coactive_share=rng.random((n, 2)).astype(np.float32), before=BEFORE, site="resid_post.0",
    )  # fmt: skip


FOUND = make_descriptions()
LABELS = tuple(f"label {'odd' if i % 2 else 'even'} <{i}>" for i in range(N))
PREDICATES = Predicates(
    kinds=np.zeros(N, int),
    train_f1=np.ones(N),
    f1=np.linspace(0, 1, N),
    active=np.ones(N),
    everywhere=np.zeros(N),
    texts=LABELS,
)


def read(path):
    text = path.read_text(encoding="ascii")
    assert "<" not in text and text.startswith("/* jaxinterp: ")
    return json.loads(re.search(r"(?:= |addLatents\(\d+, )(.*?)\)?;\n$", text)[1])


def test_the_files_hold_what_was_described(tmp_path):
    index = latent_pages(FOUND, tmp_path / "out", texts=TEXTS, predicates=PREDICATES)
    listed = read(index.parent / "data" / "index.js")
    assert listed["tokens"] == SHOWN and listed["labels"] == list(LABELS) and listed["rows"] == 1000
    np.testing.assert_allclose(listed["rate"], FOUND.firing_rate, rtol=1e-4)
    np.testing.assert_allclose(listed["max"], FOUND.max_activation, rtol=1e-4)
    assert listed["fires"][DEAD] == []
    for shown, ids in zip(listed["promotes"], FOUND.promoted.ids.tolist(), strict=True):
        assert shown == [i for i in ids if i != BYTE] + [i for i in ids if i == BYTE]
    files = sorted(path.name for path in (index.parent / "data").glob("latents_*"))
    assert files == [f"latents_{i:05d}.js" for i in range(5)]
    every = [one for name in files for one in read(index.parent / "data" / name)]
    assert len(every) == N and every[DEAD]["top"] == [] and every[DEAD]["counts"] == []
    assert [len(every[0]["top"]), len(every[1]["top"])] == [2, 3]
    for i in (0, 5, 299):
        one = every[i]
        groups = [(one["top"], FOUND.top, ()), *((one["quantiles"][q], FOUND.quantiles, (q,)) for q in range(2))]
        for shown, given, at in groups:
            for c, (center, tokens, active) in enumerate(shown):
                own = given.tokens[(i, *at, c)]
                assert tokens == own[own >= 0].tolist() and center == BEFORE - (own < 0).sum()
                values = np.zeros(len(tokens))
                for place, value in active:
                    values[place] = value
                np.testing.assert_allclose(values, given.activations[(i, *at, c)][own >= 0], rtol=6e-3)
        np.testing.assert_array_equal(one["counts"], FOUND.counts[i][: len(one["counts"])])
        assert [pair[0] for pair in one["suppressed"]] == FOUND.suppressed.ids[i].tolist()
        assert [pair[0] for pair in one["coactive"]] == [j for j in FOUND.coactive.ids[i].tolist() if j >= 0]
        np.testing.assert_allclose(
            one["coactive"][0][1:], [FOUND.coactive.values[i, 0], FOUND.coactive_share[i, 0]], rtol=1e-4
        )


SETS = {
    3: ("token is one of ' dog', '\\n', \"it's\"", ["token", [" dog", "⏎", "it's"]]),
    4: ("previous token is one of ', ', '\\u202eabc', ''", ["previous token", [", ", "<U+202E>abc", "<empty>"]]),
    5: ("token is one of my friends", "token is one of my friends"),
    6: ("token is one of 1, 2", "token is one of 1, 2"),
    7: ("token matches a space", "token matches a space"),
}
WITH_SETS = dataclasses.replace(
    PREDICATES, texts=tuple(SETS[i][0] if i in SETS else text for i, text in enumerate(LABELS))
)


def test_labels_that_are_sets_of_tokens_are_kept_as_sets(tmp_path):
    index = latent_pages(
        FOUND, tmp_path / "out", texts=TEXTS, predicates=WITH_SETS, title="T", provenance={"model": "m"}
    )
    listed = read(index.parent / "data" / "index.js")
    assert {i: listed["labels"][i] for i in SETS} == {i: kept for i, (_, kept) in SETS.items()}
    assert listed["where"] == "T, resid_post.0, m"
    latent_pages(FOUND, tmp_path / "out", texts=TEXTS, title="Latents of resid_post.0")
    assert read(index.parent / "data" / "index.js")["where"] == "Latents of resid_post.0"


def test_the_pages_ask_nothing_of_a_network(tmp_path):
    index = latent_pages(
        FOUND, tmp_path / "out", texts=TEXTS, title="<b>", notes=["1 < 2"], provenance={"model": "x&y"}
    )
    for page in (index, index.with_name("latent.html")):
        source = page.read_text()
        source = source.replace("http://www.w3.org/2000/svg", "")
        assert not re.findall(r"https?:|//[a-z]|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|innerHTML", source)
        assert re.findall(r'src="([^"]*)"', source) == ["data/index.js"] and "default-src 'none'" in source
    for expected in ("<h1>&lt;b&gt;</h1>", "1 &lt; 2", "x&amp;y", "resid_post.0"):
        assert expected in index.read_text()


def test_text_on_the_strongest_activation_can_be_read(tmp_path):
    """The contrast is at least 4.5 (WCAG 2, AA), in light and dark."""
    source = latent_pages(FOUND, tmp_path / "out", texts=TEXTS).read_text()
    part = lambda hex: np.array([int(hex[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = lambda c: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    luminance = lambda c: linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05
    found = {name: re.findall(rf"--{name}: (#\w+|\d+)", source) for name in ("paper", "ink", "mark", "most")}
    assert [len(values) for values in found.values()] == [2, 2, 2, 2]
    for paper, ink, mark, most in zip(*found.values(), strict=True):
        back = part(mark) * int(most) / 100 + part(paper) * (1 - int(most) / 100)
        one, other = sorted([luminance(back), luminance(part(ink))])
        assert other / one > 4.5, (back, ink)


def test_only_pages_of_latents_are_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    index = latent_pages(FOUND, folder, texts=TEXTS, title="first")
    latent_pages(FOUND, folder, texts=TEXTS, title="second")
    assert "second" in index.read_text()
    monkeypatch.setattr("jaxinterp.viz._latent_pages._index", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        latent_pages(FOUND, folder, texts=TEXTS, title="third")
    assert "second" in index.read_text() and [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "data" / "own.js").write_text("mine")
    with pytest.raises(SaveError, match=r"holds 'data/own.js', which is no page of latents"):
        latent_pages(FOUND, folder, texts=TEXTS)
    other = tmp_path / "site"
    other.mkdir()
    (other / "index.html").write_text("mine")
    with pytest.raises(SaveError, match=r"holds 'index.html'"):
        latent_pages(FOUND, other, texts=TEXTS)
    assert (other / "index.html").read_text() == "mine"


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(InputError, match="11 texts, but there is a token 11"):
        latent_pages(FOUND, tmp_path / "out", texts=TEXTS[:11])
    two = np.zeros(2)
    fewer = Predicates(kinds=two, train_f1=two, f1=two, active=two, everywhere=two, texts=("a", "b"))
    with pytest.raises(InputError, match="2 predicates for 300 latents"):
        latent_pages(FOUND, tmp_path / "out", texts=TEXTS, predicates=fewer)
    assert not list(tmp_path.iterdir())


INDEX = """
const rows = () => [...document.querySelectorAll('#list tr[data-i]')].map((row) => +row.dataset.i);
const counted = () => document.getElementById('count').textContent;
const ask = (text) => {
  const field = document.getElementById('search');
  field.value = text;
  field.dispatchEvent(new Event('input'));
};
const sort = (name) => document.querySelector(`th[data-name="${name}"] button`).click();
said.push(document.getElementById('about').textContent, counted(), rows().length < 120, rows().slice(0, 3));
ask('#123'); said.push(rows());
ask('LABEL even <29'); said.push(rows());
ask('</scr' + 'ipt>'); said.push(rows().length > 0, rows().every((i) => haystacks[i].includes('</scr' + 'ipt>')), location.hash);
ask('no such thing'); said.push(rows(), counted());
ask(''); sort('rate'); said.push(rows().slice(0, 5), document.querySelector('[data-name="rate"]').getAttribute('aria-sort'));
sort('rate'); said.push(rows().slice(0, 5), location.hash);
sort('number'); window.scrollTo(0, 1e6); window.dispatchEvent(new Event('scroll'));
said.push(rows().at(-1), rows()[0] > 100);
document.getElementById('dead').click(); sort('max'); sort('max');
said.push(rows()[0] === undefined ? '' : shown[0], counted());
said.push(document.querySelector('#list td.number a').getAttribute('href').startsWith('latent.html#'));
"""


@pytest.mark.slow
def test_in_a_browser_the_index_is_searched_and_sorted(tmp_path, ask_browser):
    index = latent_pages(FOUND, tmp_path / "out", texts=TEXTS, predicates=PREDICATES)
    said = ask_browser(index, INDEX)
    assert said[:2] == ["300 latents, 1 of them never active, in 1,000 tokens", "299 of 299 latents"]
    assert said[2:4] == [True, [0, 1, 2]]
    assert said[4:6] == [[123], [290, 292, 294, 296, 298]]
    assert said[6:9] == [True, True, "#q=%3C%2Fscript%3E"]
    assert said[9:11] == [[], "0 of 299 latents"]
    order = np.argsort(-np.float64([f"{v:.5g}" for v in FOUND.firing_rate]), kind="stable")
    assert said[11:13] == [order[:5].tolist(), "descending"]
    assert said[13:15] == [[i for i in order[::-1].tolist() if i != DEAD][:5], "#sort=rate"]
    assert said[15:17] == [299, True]
    assert said[17:] == [DEAD, "300 of 300 latents", True]


ONE = """
const wait = async (check) => { for (let i = 0; i < 100 && !check(); i++) await new Promise((done) => setTimeout(done, 10)); };
const heading = () => document.querySelector('#latent h1')?.textContent;
const go = async (hash, title) => { location.hash = hash; await wait(() => heading() === title); };
await wait(() => heading() === 'Latent 70');
const line = document.querySelector('.contexts li');
const spans = [...line.querySelectorAll('.text span')];
said.push(heading(), document.querySelector('.lede').textContent, spans.map((span) => span.textContent));
said.push(spans.map((span) => span.title), spans.findIndex((span) => span.className === 'own'));
said.push(spans.map((span) => +(span.style.getPropertyValue('--v') || 0)));
said.push(document.querySelectorAll('.contexts').length, document.querySelectorAll('.bars .column').length);
said.push([...document.querySelectorAll('aside h2')].map((one) => one.textContent));
const tables = [...document.querySelectorAll('aside table')];
const links = (table) => [...table.querySelectorAll('a')].map((a) => a.getAttribute('href'));
said.push(tables[0].rows.length, links(tables[2]), links(tables[3]));
said.push(document.getElementById('next').getAttribute('href'), document.getElementById('previous').getAttribute('href'));
document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
await wait(() => heading() === 'Latent 72');
said.push(heading());
await go('71', 'Latent 71'); said.push(document.querySelector('dd').textContent, document.querySelectorAll('.contexts').length);
await go('299', 'Latent 299'); said.push(heading(), document.getElementById('next').getAttribute('href'));
await go('300', 'No such latent'); said.push(document.querySelector('#latent p').textContent);
"""


@pytest.mark.slow
def test_in_a_browser_a_latent_is_shown_with_links_to_others(tmp_path, ask_browser):
    index = latent_pages(FOUND, tmp_path / "out", texts=TEXTS, predicates=PREDICATES)
    said = ask_browser(index.with_name("latent.html"), ONE, "#70")
    tokens, values = FOUND.top.tokens[70, 0], FOUND.top.activations[70, 0]
    there = tokens >= 0
    assert said[:3] == ["Latent 70", LABELS[70], [SHOWN[i] for i in tokens[there]]]
    assert said[4] == BEFORE - (~there).sum()
    assert [bool(title) for title in said[3]] == (values[there] > 0).tolist()
    own = said[3][said[4]]
    assert own.startswith("activation ") and float(own.split()[1]) == pytest.approx(values[BEFORE], rel=6e-3)
    share = values[there] / FOUND.max_activation[70]
    np.testing.assert_allclose(said[5], np.where(share, 0.1 + 0.9 * share, 0), atol=6e-3)
    assert said[6:8] == [1 + 2, len(np.trim_zeros(FOUND.counts[70], "b"))]
    assert said[8] == ["Activations", "Tokens", "Active together", "Nearest"]
    assert said[9:12] == [1 + 3, [f"#{i}" for i in FOUND.coactive.ids[70]], [f"#{i}" for i in FOUND.nearest.ids[70]]]
    assert said[12:15] == ["#72", "#69", "Latent 72"]
    assert said[15:17] == ["never", 0]
    assert said[17:] == ["Latent 299", None, "There is no latent 300: they are 0 to 299."]


SETS_IN_LIST = """
const cell = (i, name) => document.querySelector(`tr[data-i="${i}"] .${name}`);
const parts = (root, what) => [...root.querySelectorAll(what)].map((one) => one.textContent);
said.push(parts(cell(3, 'label'), '.chip'), cell(3, 'label').textContent, cell(3, 'label').title);
said.push(cell(4, 'label').textContent, cell(5, 'label').textContent, document.querySelectorAll('mark').length);
said.push(document.querySelector('#density .axis:not([text-anchor])').textContent, document.querySelector('.source').open);
ask("IT'S"); said.push(rows(), parts(cell(3, 'label'), '.chip'), parts(document, '#list mark'));
ask('token'); said.push(rows()); ask('previous'); said.push(rows()); // the lead words of a set of tokens are not shown
ask('my frien'); said.push(rows(), parts(document, '#list mark'), document.getElementById('nothing').textContent);
ask('zz('); said.push(document.getElementById('nothing').textContent);
ask(''); const narrow = cell(3, 'label').querySelector('.chips'); narrow.style.width = '85px';
const boxes = [...narrow.children].map((one) => one.getBoundingClientRect());
const end = narrow.getBoundingClientRect(); // what does not fit stands whole below the line that is seen
said.push(boxes.map((box) => box.top >= end.bottom), boxes.every((box) => box.right <= end.right));
"""
SETS_IN_LIST = INDEX.split("said.push", 1)[0] + SETS_IN_LIST
SETS_OF_ONE = """
await wait(() => heading() === 'Latent 3');
const lede = document.querySelector('.lede');
said.push(lede.firstChild.textContent, [...lede.querySelectorAll('.chip')].map((one) => one.textContent));
said.push(document.querySelector('.where').textContent, document.querySelector('aside .axis:not([text-anchor])').textContent);
const at = (what) => [...document.querySelectorAll(what)].map((one) => one.getBoundingClientRect());
const lefts = () => new Set(at('.contexts .own').map((box) => Math.round(box.left))).size;
said.push(innerWidth, at('.examples')[0].bottom <= at('aside')[0].top, at('.contexts').length, lefts());
const ends = at('.contexts .before span:last-child').map((box) => Math.round(box.right));
said.push(new Set([...ends, ...at('.contexts .own').map((box) => Math.round(box.left))]).size);
const first = document.querySelector('.contexts li');
first.click(); said.push(first.className, getComputedStyle(first.querySelector('.text')).display, lefts());
"""
SETS_OF_ONE = ONE.split("await wait(() => heading() === 'Latent 70')")[0] + SETS_OF_ONE


@pytest.mark.slow
def test_in_a_browser_sets_are_chips_and_what_is_searched_is_marked(tmp_path, ask_browser):
    index = latent_pages(FOUND, tmp_path / "out", texts=TEXTS, predicates=WITH_SETS)
    said = ask_browser(index, SETS_IN_LIST)
    assert said[:3] == [["·dog", "⏎", "it's"], "·dog⏎it's", "token is one of ·dog, ⏎, it's"]
    assert said[3:6] == ["previous token:,·<U+202E>abc<empty>", "token is one of my friends", 0]
    exponents = np.clip(np.floor(4 * (np.log10(FOUND.firing_rate[FOUND.firing_rate > 0]) + 3)), 0, 11)
    assert said[6:8] == [f"{np.bincount(exponents.astype(int)).max()} latents", False]
    assert said[8:11] == [[3], ["it's", "·dog", "⏎"], ["it's"]]
    assert said[11:13] == [[4, 5, 6, 7], [4]]
    assert said[13:16] == [[5], ["my", "frien"], ""]
    expected = "Searched are numbers, the tokens listed here, and labels, of latents that are ever active."
    assert said[16:] == [f"Nothing fits “zz(”. {expected}", [False, False, True], True]


@pytest.mark.slow
def test_in_a_browser_contexts_come_first_and_are_aligned_at_their_token(tmp_path, ask_browser):
    index = latent_pages(FOUND, tmp_path / "out", texts=TEXTS, predicates=WITH_SETS, title="Of a test")
    said = ask_browser(index.with_name("latent.html"), SETS_OF_ONE, "#3")
    assert said[:3] == ["token is one of", ["·dog", "⏎", "it's"], "Of a test, resid_post.0"]
    assert said[3] == f"{FOUND.counts[3].max()} tokens"
    assert 640 <= said[4] <= 900 and said[5:8] == [True, 3, 1]
    assert said[8:11] == [1, "open", "block"] and said[11] > 1


MANY = """
const isDog = (t) => latents.tokens[t] === ' dog';
said.push(document.getElementById('about').textContent.split(',').slice(0, 2).join(','), rows().length < 120);
ask('\\u00b7dog');
said.push(shown.length, shown.every((i) => latents.fires[i].concat(latents.promotes[i]).some(isDog)));
ask('#4999'); said.push(rows());
"""
MANY = INDEX.split("said.push", 1)[0] + MANY
WRONG = """
await wait(() => heading() === 'Latent 4999'); said.push(heading());
await go('%', 'No such latent'); said.push(document.querySelector('#latent p').textContent);
"""
WRONG = ONE.split("await wait(() => heading() === 'Latent 70')")[0] + WRONG


@pytest.mark.slow
def test_in_a_browser_thousands_of_latents(tmp_path, ask_browser):
    many = make_descriptions(n=5000)
    index = latent_pages(many, tmp_path / "out", texts=TEXTS)
    found = ask_browser(index, MANY)
    assert found[:2] == ["5,000 latents", True] and 0 < found[2] < 5000 and found[3:] == [True, [4999]]
    said = ask_browser(index.with_name("latent.html"), WRONG, "#4999")
    assert said == ["Latent 4999", "There is no latent %: they are 0 to 4999."]


@pytest.mark.slow
def test_in_a_browser_pages_without_tokens_and_labels(tmp_path, ask_browser):
    index = latent_pages(make_descriptions(n_tokens=0), tmp_path / "out", texts=TEXTS)
    heads = "said.push([...document.querySelectorAll('#list th')].map((one) => one.dataset.name))"
    assert ask_browser(index, heads) == [["number", "fires", "rate", "max", "mean"]]
