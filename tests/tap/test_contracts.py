"""The compile-time contracts: what is not asked for costs nothing, and what is data never compiles again."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinterp as ji
from jaxinterp.tap import Tap
from tests.tiny import check_close, check_same, make_model, make_params, make_tokens


class NoTap(Tap):
    """What a model without taps would have: values untouched, raw lax.scan."""

    def __call__(self, name, value, axes=None):
        return value

    def wants(self, name):
        return False

    def at(self, **place):
        return self

    def scan(self, body, carry, xs, *, axis="layer", length=None, first=0, total=None, unroll=False):
        return lax.scan(lambda c, x: body(c, x, tap=self), carry, xs, length=length)


class Unrolled(Tap):
    """The model's own loops as straight code."""

    def _replace(self, **changes):
        new = super()._replace(**changes)
        new.__class__ = Unrolled
        return new

    def scan(self, *args, **how):
        return super().scan(*args, **(how | {"unroll": True}))


def compiled(fn, *args):
    return jax.jit(lambda *args: fn(*args)).lower(*args).compile()  # the same parameter names for all


def program(fn, *args):
    return compiled(fn, *args).as_text()


def anonymous(text):
    """Optimized HLO without metadata, with names replaced by the order of their first appearance."""
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    text = "\n".join(line for line in text.splitlines() if re.match(r"(ROOT |ENTRY )?%", line.strip()))
    names: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda m: names.setdefault(m.group(), f"%{len(names)}"), text)


def instructions(text):
    return collections.Counter(re.findall(r"= \S+ ([\w\-]+)\(", text))


CONFIGS = {
    "learned, LN": {},
    "rotary, RMS, gated, grouped": dict(
        positional_embedding_type="rotary", normalization_type="RMS", act_fn="silu", gated_mlp=True, n_key_value_heads=2
    ),
}


@pytest.fixture(params=CONFIGS, ids=str)
def case(request):
    model = make_model(**CONFIGS[request.param])
    return model, make_params(model), make_tokens()


def test_a_tap_without_handlers_is_the_plain_model(case):
    model, params, tokens = case
    plain = compiled(functools.partial(model.forward, tap=NoTap()), params, tokens)
    reference = anonymous(plain.as_text())
    assert len(reference) > 1000
    for fn in (model.forward, lambda p, t: ji.run(model.forward)(p, t)[0]):
        got = compiled(fn, params, tokens)
        assert anonymous(got.as_text()) == reference
        check_same(got(params, tokens), plain(params, tokens))


def test_generation_without_handlers_is_the_plain_loop():
    model = make_model()
    params, tokens = make_params(model), make_tokens()
    generate = functools.partial(ji.models.generate, model, max_new_tokens=3)
    plain = program(functools.partial(generate, tap=NoTap()), params, tokens)
    assert anonymous(program(lambda p, t: ji.run(generate)(p, t)[0], params, tokens)) == anonymous(plain)


def test_what_is_captured_and_not_returned_is_not_computed(case):
    model, params, tokens = case
    plain = instructions(program(model.forward, params, tokens))
    captured = instructions(program(lambda p, t: ji.run(model.forward, ji.capture("*"))(p, t)[0], params, tokens))
    assert sum(plain.values()) > 100
    assert captured == plain


def test_the_names_stay_readable_in_the_jaxpr(tiny):
    text = str(jax.make_jaxpr(tiny.forward)(tiny.params, tiny.tokens))
    for name in ("embed", "resid_pre", "attn.z", "mlp.post", "logits"):
        assert f"name={name}" in text
    assert "attn.pattern" not in text


def test_an_on_demand_site_is_computed_only_when_named(tiny):
    seen = ji.run(tiny.forward, ji.capture("*"))(tiny.params, tiny.tokens)[1]
    always = {s.name for s in ji.sites(tiny.forward, tiny.params, tiny.tokens) if not s.on_demand}
    assert set(seen) == always and "attn.pattern" not in always
    pattern = ji.run(tiny.forward, ji.capture("attn.pattern"))(tiny.params, tiny.tokens)[1]["attn.pattern"]
    check_close(pattern.sum(-1), np.ones((3, 2, 4, 6)))


def some_edits():
    rng = np.random.default_rng(3)
    return (
        ji.patch("attn.z", per_layer=rng.normal(size=(3, 2, 6, 4, 4)).astype(np.float32), head=[1, 3], position=2),
        ji.add("resid_mid", np.ones(8, np.float32), layer=jnp.array([0, 2]), coefficient=0.5),
        ji.zero("mlp.post", layer=1, feature=[0, 5]),
        ji.capture("resid_*", "attn.pattern"),
        ji.capture("attn.z", layers=[0, 2], prefix="some/"),
        ji.statistics("mlp.post"),
    )


def test_scan_is_unrolled(tiny):
    def unrolled(params, tokens, *, tap):
        tap.__class__ = Unrolled
        return tiny.forward(params, tokens, tap=tap)

    scanned = jax.jit(lambda h: ji.run(tiny.forward, *h)(tiny.params, tiny.tokens))(some_edits())
    straight = jax.jit(lambda h: ji.run(unrolled, *h)(tiny.params, tiny.tokens))(some_edits())
    assert scanned[1].keys() == straight[1].keys()
    assert scanned[1]["some/attn.z"].shape == (2, 2, 6, 4, 4)
    jax.tree.map(check_close, scanned, straight)


def test_scan_is_a_python_loop(tiny):
    model, n = tiny.model, 3

    def looped(params, tokens, *, tap):
        positions = jnp.arange(tokens.shape[1])[None]
        x = model.embed(params, tokens, positions=positions, tap=tap)
        for i in range(n):
            layer = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], (params["blocks"][0], model.layer_data()[0]))  # noqa: B023
            x, _ = model.block(*layer, x, positions=positions, tap=tap.at(layer=i, n_layers=n))
        return model.unembed(params, x, tap=tap)

    scanned = jax.jit(lambda h: ji.run(tiny.forward, *h)(tiny.params, tiny.tokens))(some_edits())
    straight = jax.jit(lambda h: ji.run(looped, *h)(tiny.params, tiny.tokens))(some_edits())
    jax.tree.map(check_close, scanned, straight)


def test_compile_size_is_flat_in_depth():
    sizes = []
    for n_layers in (2, 8):
        model = make_model(n_layers=n_layers)
        handlers = (ji.capture("*"), ji.zero("attn.z", layer=jnp.int32(1)))
        params = model.param_shapes()
        jaxpr = jax.make_jaxpr(lambda p, t: ji.run(model.forward, *handlers)(p, t))(params, make_tokens())  # noqa: B023
        sizes.append(len(str(jaxpr).splitlines()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("index", ["layer", "head", "position", "feature"])
def test_a_traced_index_never_compiles_again(tiny, count_compiles, index):
    @jax.jit
    def f(where):
        return ji.run(tiny.forward, ji.zero("attn.z", **where))(tiny.params, tiny.tokens)[0]

    at = [{index: np.int32(i)} for i in range(3)]
    first = f(at[0])
    with count_compiles() as compiles:
        others = [f(a) for a in at[1:]]
    assert compiles.names == []
    assert not np.allclose(first, others[0]) and not np.allclose(others[0], others[1])


def test_an_edit_as_an_argument_never_compiles_again(tiny, count_compiles):
    @jax.jit
    def f(handlers):
        return ji.run(tiny.forward, *handlers)(tiny.params, tiny.tokens)[0]

    def edits(i, value):
        vector = np.full(8, value, np.float32)
        return (
            ji.patch("resid_pre", vector, layer=i, position=i),
            ji.add("resid_mid", vector, layer=[i], coefficient=float(i)),
            ji.scale("mlp.out", value, layer=i, position=np.full((2, 1), i)),
            ji.project_out("resid_post", vector, layer=i),
            ji.mean("attn.z", layer=i, head=i),
            ji.edit("final.in", jnp.add, vector.reshape(1, 1, 8)),
        )

    with count_compiles() as warm:
        first = f(edits(0, 1.0))
    assert warm.count("f") == 1
    later = [edits(i, float(i)) for i in (1, 2)]
    with count_compiles() as compiles:
        results = [f(h) for h in later]
    assert compiles.names == []
    assert not np.allclose(first, results[0]) and not np.allclose(results[0], results[1])


def test_two_models_with_equal_configs_share_a_program(count_compiles):
    @functools.partial(jax.jit, static_argnums=0)
    def f(model, params, tokens):
        return model.forward(params, tokens)

    one, two = make_model(n_layers=2), make_model(n_layers=2)
    assert one == two and hash(one) == hash(two) and one != make_model(n_layers=3)
    params, tokens = make_params(one), make_tokens()
    f(one, params, tokens)
    with count_compiles() as compiles:
        f(two, params, tokens)
    assert compiles.names == []
