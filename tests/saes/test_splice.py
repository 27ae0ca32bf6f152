"""A spliced dictionary: against an edit of the site by hand, in forward passes, generation, sweeps and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import attribution, patching, saes
from jaxinterp.saes import JumpReLU, SAEConfig, TopK
from tests.tiny import FAMILIES, check_close, check_same, make_model, make_params, make_tokens

MODEL = make_model(**FAMILIES["llama"])
PARAMS = make_params(MODEL)
TOKENS = make_tokens(batch=3, length=6)


def make_sae(site="resid_post.1", width=8, architecture=TopK(k=3), **changes):  # noqa: B008
    config = SAEConfig(architecture=architecture, d_in=width, n_latents=20, site=site, **changes)
    sae = saes.init(config, jax.random.key(1))
    bias = 0.1 * jax.random.normal(jax.random.key(2), (width,))
    return saes.SAE(params={**sae.params, "b_dec": bias}, scales=sae.scales, config=config)


def logits(*handlers, **how):
    return ji.run(MODEL.forward, *handlers)(PARAMS, TOKENS, **how)[0]


@pytest.mark.parametrize(
    ("site", "width"), [("resid_post.1", 8), ("resid_pre.0", 8), ("mlp.out.2", 8), ("attn.z.1", 16), ("embed", 8)]
)
@pytest.mark.parametrize("architecture", [TopK(k=3), JumpReLU(threshold=0.4)], ids=lambda a: a.name)
def test_without_the_error_it_is_the_reconstruction(site, width, architecture):
    sae = make_sae(site, width, architecture, normalize="sqrt_d")
    name, layer = (site, None) if site == "embed" else (site[:-2], int(site[-1]))
    by_hand = lambda value: sae(value.reshape(*value.shape[:2], -1)).reshape(value.shape)
    want = logits(ji.edit(name, by_hand, layer=layer))
    check_close(logits(saes.splice(sae, error="drop")), want, 2e-5)
    assert np.abs(np.asarray(want - logits())).max() > 0.1
    check_close(logits(saes.splice(sae)), logits(), 1e-6)


def test_latents_are_a_site_and_other_captures_stay_whole():
    sae = make_sae()
    handlers = (
        ji.capture("resid_post", "sae.latents"),
        saes.splice(sae, error="drop"),
        ji.capture("sae.latents", "mlp.out"),
    )
    _, plain, _ = ji.run(MODEL.forward, ji.capture("resid_post", "mlp.out"))(PARAMS, TOKENS)
    with pytest.raises(ji.UnvisitedSiteError, match=r"sae\.latents"):  # to the left of the splice there is no such site
        ji.run(MODEL.forward, *handlers)(PARAMS, TOKENS)
    _, acts, _ = ji.run(MODEL.forward, ji.capture("resid_post"), *handlers[1:])(PARAMS, TOKENS)
    check_close(acts["sae.latents"], sae.encode(plain["resid_post"][1]))
    assert acts["resid_post"].shape == plain["resid_post"].shape
    check_close(acts["resid_post"][:2], plain["resid_post"][:2])
    check_close(acts["mlp.out"][:2], plain["mlp.out"][:2])
    assert np.abs(np.asarray(acts["mlp.out"][2] - plain["mlp.out"][2])).max() > 0.01


def test_clamping_adds_the_decoder_row():
    """x + (c - f_j(x)) W_dec_j, the error kept: the intervention of Templeton et al. 2024."""
    sae, j, c = make_sae(), 4, 7.0
    row = sae.params["W_dec"][j]
    by_hand = ji.edit("resid_post", lambda x: x + (c - sae.encode(x)[..., j : j + 1]) * row[None, None], layer=1)
    clamp = ji.edit("sae.latents", lambda z: jnp.full_like(z, c), feature=j)
    check_close(logits(saes.splice(sae), clamp), logits(by_hand), 1e-5)


def test_places_that_stay():
    sae = make_sae()
    want = logits(ji.edit("resid_post", sae, layer=1, position=[2, 3]))
    check_close(logits(saes.splice(sae, error="drop", position=[2, 3])), want)
    want = logits(ji.edit("resid_post", sae, layer=1, position=[1, 2, 3, 4, 5]))
    check_close(logits(saes.splice(sae, error="drop", exclude_positions=(0,))), want)
    mask = jnp.asarray(np.arange(6)[None] >= np.array([[0], [2], [3]]))  # positions count from the first real token
    by_hand = ji.edit("resid_post", sae, layer=1, position=[1, 2])
    got = logits(saes.splice(sae, error="drop", position=[1, 2]), mask=mask)
    check_close(got[mask], logits(by_hand, mask=mask)[mask])


OPS = {
    "add": (functools.partial(ji.add, value=40.0), lambda f: f + 40.0),
    "clamp": (functools.partial(ji.patch, value=40.0), lambda f: jnp.full_like(f, 40.0)),
    "scale": (functools.partial(ji.scale, factor=3.0), lambda f: 3.0 * f),
    "ablate": (ji.zero, jnp.zeros_like),
}


@pytest.mark.parametrize("name", OPS)
def test_in_generation_at_chosen_steps(name):
    """A latent that is active is edited from the second step on: as the change of the site written by hand."""
    sae = make_sae(architecture=JumpReLU(threshold=0.01))
    latents = ji.run(MODEL.forward, saes.splice(sae), ji.capture("sae.latents"))(PARAMS, TOKENS)[1]["sae.latents"]
    j = int(jnp.argmax(jnp.min(latents[:, -1], axis=0)))

    def generate(*handlers):
        write = functools.partial(ji.generate, MODEL, max_new_tokens=5)
        tokens, acts, _ = ji.run(write, *handlers, ji.capture("logits"))(PARAMS, TOKENS)
        return tokens, acts["logits"]

    make, new = OPS[name]
    edit = make("sae.latents", feature=j, step=slice(1, None))
    row = sae.params["W_dec"][j]

    def change(x):
        f = sae.encode(x)[..., j : j + 1]
        return x + (new(f) - f) * row[None, None]

    got, want = generate(saes.splice(sae), edit), generate(ji.edit("resid_post", change, layer=1, step=slice(1, None)))
    check_same(got[0], want[0])
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        check_close(a, b)
    plain = generate()
    moved = [
        np.abs(np.asarray(a - b)).max() for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(plain[1]), strict=True)
    ]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("error", ["keep", "drop"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_stands_in_for_its_target(error, skip):
    config = SAEConfig(
        architecture=JumpReLU(threshold=0.05),
        d_in=8,
        n_latents=20,
        site="mlp.in.1",
        target="blocks.1.hook_mlp_out",
        skip=skip,
    )
    sae = saes.init(config, jax.random.key(1))
    moved = {"b_dec": 0.3 + sae.params["b_dec"], **({"W_skip": 0.2 + sae.params["W_skip"]} if skip else {})}
    sae = saes.SAE(params={**sae.params, **moved}, scales=sae.scales, config=config)
    plain = ji.run(MODEL.forward, ji.capture("mlp.in", "mlp.out"))(PARAMS, TOKENS)[1]
    read, given = plain["mlp.in"][1], plain["mlp.out"][1]
    latents = sae.encode(read)
    assert 0 < (np.asarray(latents) > 0).mean() < 1
    j = int(jnp.argmax(latents.sum((0, 1))))
    clamped = latents.at[..., j].set(2.0)
    new = sae.decode(clamped, read) + (given - sae.decode(latents, read) if error == "keep" else 0.0)
    want = logits(ji.patch("mlp.out", new, layer=1))
    clamp = ji.patch("sae.latents", 2.0, feature=j)
    check_close(logits(saes.splice(sae, error=error), clamp), want, 1e-5)
    params = {"model": PARAMS, "saes": [sae]}
    check_close(
        jax.jit(lambda p, t: ji.run(saes.Spliced(MODEL.forward, error=error), clamp)(p, t)[0])(params, TOKENS),
        want,
        1e-5,
    )
    write = functools.partial(ji.generate, MODEL, max_new_tokens=4)
    tokens = ji.run(write, saes.splice(sae, error=error), clamp)(PARAMS, TOKENS)[0]
    for length in range(6, 10):  # each token is the most probable one of a whole pass
        step = ji.run(MODEL.forward, saes.splice(sae, error=error), clamp)(PARAMS, tokens[:, :length])[0]
        check_same(jnp.argmax(step[:, -1], axis=-1), tokens[:, length])


def test_two_dictionaries_and_jit():
    one, two = make_sae(), make_sae("mlp.out.2")
    spliced = saes.Spliced(MODEL.forward, error="drop")
    params = {"model": PARAMS, "saes": [one, two]}
    want = logits(ji.edit("resid_post", one, layer=1), ji.edit("mlp.out", two, layer=2))
    check_close(jax.jit(lambda params, tokens: spliced(params, tokens))(params, TOKENS), want, 2e-5)
    off = ji.zero("sae.latents.mlp.out.2")
    by_hand = ji.edit("mlp.out", lambda x: jnp.broadcast_to(two.params["b_dec"], x.shape), layer=2)
    check_close(ji.run(spliced, off)(params, TOKENS)[0], logits(ji.edit("resid_post", one, layer=1), by_hand), 2e-5)


def test_latents_are_cells_of_a_sweep_and_of_attribution():
    sae = make_sae(architecture=JumpReLU(threshold=0.2))
    spliced, params = saes.Spliced(MODEL.forward), {"model": PARAMS, "saes": [sae]}
    metric = patching.logit_difference([1, 2, 3], [4, 5, 6], position=[5, 5, 5])
    latents = ji.run(spliced, ji.capture("sae.latents"))(params, TOKENS)[1]["sae.latents"]
    active = np.flatnonzero(np.asarray(latents[:, 3].max(axis=0)) > 0)[:4].tolist()
    how = dict(base=TOKENS, site="sae.latents", over={"position": [3, 5], "feature": active}, metric=metric, op=ji.zero)
    effects = patching.sweep(spliced, params, progress=False, keep=("prompts",), **how)
    gap = lambda out: np.asarray(out[np.arange(3), 5, [1, 2, 3]] - out[np.arange(3), 5, [4, 5, 6]])
    base = gap(logits())
    for i, position in enumerate([3, 5]):
        for k, feature in enumerate(active):
            row = sae.params["W_dec"][feature]
            without = lambda x, f=feature, r=row: x - sae.encode(x)[..., f : f + 1] * r[None, None]
            want = gap(logits(ji.edit("resid_post", without, layer=1, position=position))) - base
            check_close(effects.effect_by_prompt[i, k].values, want, 1e-4)
    single = {**how, "over": {"position": [5], "feature": active}}
    audited = {key: value for key, value in single.items() if key not in ("site", "op")}
    found = attribution.attribution_patching(spliced, params, sites="sae.latents", audit=4, progress=False, **audited)
    small = lambda factor: patching.sweep(
        spliced, params, progress=False, **{**single, "op": lambda site: ji.scale(site, factor)}
    )
    slope = (small(0.99).effect - small(1.01).effect) / 0.02
    check_close(found["sae.latents"].score.values, slope.values, 0.02)
    other = TOKENS[::-1]  # the values of another run, which is what a sweep puts in when nothing else is said
    patched = patching.sweep(
        spliced, params, progress=False, source=other, keep=("prompts",), **{**single, "op": ji.patch}
    )
    theirs = sae.encode(ji.run(MODEL.forward, ji.capture("resid_post"))(PARAMS, other)[1]["resid_post"][1])
    for k, feature in enumerate(active):
        row, value = sae.params["W_dec"][feature], theirs[:, 5, feature][:, None, None]
        put = lambda x, f=feature, r=row, v=value: x + (v - sae.encode(x)[..., f : f + 1]) * r[None, None]
        want = gap(logits(ji.edit("resid_post", put, layer=1, position=5))) - base
        check_close(patched.effect_by_prompt[0, k].values, want, 1e-4)
    exact = patching.sweep(spliced, params, progress=False, **single).effect.values.ravel()
    cells = found.audits["sae.latents"].cells
    check_close(sorted(cells.effect.values), sorted(exact), 1e-5)


@pytest.mark.filterwarnings("ignore:attention is saturated")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_are_swept_and_attributed_as_each_alone(side):
    sae, lengths = make_sae(architecture=JumpReLU(threshold=0.2)), [6, 4, 5]
    spliced = saes.Spliced(MODEL.forward, error="drop", exclude_positions=(0,))
    params = {"model": PARAMS, "saes": [sae]}
    padded, mask = np.zeros((3, 6), np.int32), np.zeros((3, 6), bool)
    for i, n in enumerate(lengths):
        place = slice(6 - n, 6) if side == "left" else slice(0, n)
        padded[i, place], mask[i, place] = TOKENS[i, :n], True
    over = {"position": [1, 3], "feature": list(range(20))}
    answer = lambda rows: patching.logit_difference(
        [1 + i for i in rows], [4 + i for i in rows], position=[lengths[i] - 1 for i in rows]
    )
    how = dict(over=over, progress=False, keep=("prompts",))
    sweep = lambda **more: patching.sweep(spliced, params, site="sae.latents", **how, **more)
    scores = lambda **more: attribution.attribution_patching(spliced, params, sites="sae.latents", **how, **more)
    whole = dict(base=padded, mask=mask, metric=answer([0, 1, 2]))
    other = lambda tokens: (tokens + 1) % MODEL.config.d_vocab
    off, patched = sweep(op=ji.zero, **whole), sweep(source=other(padded), **whole)
    scored = scores(**whole)["sae.latents"]
    assert min(np.abs(found.effect_by_prompt.values).max() for found in (off, patched)) > 1e-2
    for i, n in enumerate(lengths):
        alone = dict(base=TOKENS[i : i + 1, :n], metric=answer([i]))
        check_close(off.effect_by_prompt[..., i], sweep(op=ji.zero, **alone).effect_by_prompt[..., 0], 1e-5)
        from_other = sweep(source=other(alone["base"]), **alone)
        check_close(patched.effect_by_prompt[..., i], from_other.effect_by_prompt[..., 0], 1e-5)
        check_close(scored.score_by_prompt[..., i], scores(**alone)["sae.latents"].score_by_prompt[..., 0], 1e-5)


def test_gradients_reach_the_latents():
    sae = make_sae(architecture=JumpReLU(threshold=0.2))
    spliced, params = saes.Spliced(MODEL.forward), {"model": PARAMS, "saes": [sae]}
    loss = lambda delta: ji.run(spliced, ji.perturb({"sae.latents": delta}))(params, TOKENS)[0][0, 5, 3]
    zeros = jnp.zeros((3, 6, 20))
    gradient = jax.grad(loss)(zeros)
    step = zeros.at[0, 4, 2].set(1e-2)
    assert float(loss(step) - loss(-step)) / 2e-2 == pytest.approx(float(gradient[0, 4, 2]), rel=1e-2, abs=1e-4)


def test_mistakes():
    with pytest.raises(ji.UnvisitedSiteError, match="resid_post"):
        logits(saes.splice(make_sae("resid_post.7")))
    with pytest.raises(ji.UnvisitedSiteError, match="resid_post"):
        saes.Spliced(MODEL.forward)({"model": PARAMS, "saes": [make_sae("resid_post.7")]}, TOKENS)
    with pytest.raises(ji.UnvisitedSiteError, match="layers \\[7\\]"):
        ji.sites(saes.Spliced(MODEL.forward), {"model": PARAMS, "saes": [make_sae("resid_post.7")]}, TOKENS)
    with pytest.raises(ji.InputError, match="this dictionary reads 'resid_post.1'.* 5 wide"):
        logits(saes.splice(make_sae(width=5)))
    across = SAEConfig(architecture=TopK(k=2), d_in=8, n_latents=9, site="mlp.in.1", target="mlp.out.2")
    with pytest.raises(ji.InputError, match="only one within a layer"):
        saes.splice(saes.init(across, jax.random.key(0)))
    with pytest.raises(ji.UnvisitedSiteError, match="opened by a handler that stands to the right"):
        logits(ji.zero("sae.latents"), saes.splice(make_sae()))
