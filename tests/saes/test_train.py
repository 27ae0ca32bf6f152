"""Training: what it recovers, that members of an ensemble are single runs, that a run goes on to the bit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import ConfigError, InputError, MissingFileError, SaveError
from jaxinterp.activations import ActivationStream, from_function, read_tokens
from jaxinterp.mesh import make_mesh
from jaxinterp.saes import (
    BatchTopK,
    ReLU,
    SAEConfig,
    TopK,
    TrainConfig,
    _program,
    evaluate,
    load_run,
    read_metrics,
    train,
    train_ensemble,
)
from jaxinterp.saes._program import make_program
from jaxinterp.store import Checkpoints, StoreMismatchError
from tests.saes.problems import ARCHITECTURES, PlantedStream, planted
from tests.tiny import check_close, check_same, make_model, make_params

TOPK = TopK(k=3)


def make_run(architecture=TOPK, steps=12, **changes):
    sae = SAEConfig(architecture=architecture, d_in=16, n_latents=32, **changes.pop("sae", {}))
    return TrainConfig(**{**dict(sae=sae, steps=steps, learning_rate=5e-3, log_every=4, dead_after=300), **changes})


def quiet(config, stream, **more):
    return train(config, stream, progress=False, **more)


def best_cosines(stream, sae):
    """For each planted direction the largest cosine with a decoder row."""
    decoder = np.asarray(sae.params["W_dec"])
    cosines = np.asarray(stream.directions) @ (decoder / np.linalg.norm(decoder, axis=1, keepdims=True)).T
    return cosines.max(axis=1)


@pytest.mark.parametrize("architecture", [TopK(k=3), ReLU(l1_coefficient=0.5, unit_norm=True)], ids=lambda a: a.name)
def test_planted_directions_are_recovered(architecture):
    stream = PlantedStream(batch_size=256)
    config = make_run(architecture, steps=400, learning_rate=1e-2, warmup_steps=20, decay_steps=200)
    assert best_cosines(stream, quiet(config, stream)).mean() > 0.93
    first = quiet(make_run(architecture, steps=1), PlantedStream(batch_size=256))
    assert best_cosines(stream, first).mean() < 0.7


@pytest.mark.parametrize("name", ["relu_2024", "topk_scaled", "matryoshka", "jump_relu_tanh", "gated"])
def test_the_loss_falls(name, tmp_path):
    quiet(make_run(ARCHITECTURES[name], steps=40, sparsity_warmup_steps=1), PlantedStream(), folder=tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(4, 41, 4))
    assert rows[-1]["loss"] < 0.95 * rows[0]["loss"]
    assert rows[-1]["rows"] == 40 * 64


@pytest.mark.parametrize("shape", [dict(data=8), dict(data=2, dict=4)], ids=["data", "both"])
@pytest.mark.parametrize("architecture", [TopK(k=3), BatchTopK(k=2)], ids=lambda a: a.name)
def test_a_mesh_trains_the_same(architecture, shape):
    config = make_run(architecture, steps=6, clip=0.5, sae=dict(normalize="sqrt_d"))
    want = quiet(config, PlantedStream())
    got = quiet(config, PlantedStream(), mesh=make_mesh(**shape))
    n = 32 // shape.get("dict", 1)
    assert got.params["W_enc"].addressable_shards[0].data.shape == (n, 16)
    rows = jax.device_put(next(PlantedStream())["x"], jax.devices()[0])  # elsewhere than the dictionary
    check_close(got(rows), want(rows), 1e-3)
    assert evaluate(got, [rows]).fvu == pytest.approx(evaluate(want, [rows]).fvu, rel=1e-3)
    jax.tree.map(lambda a, b: check_close(a, b, 1e-4), got.params, want.params)


def test_members_of_an_ensemble_are_single_runs():
    base = make_run(steps=8)
    members = [
        base,
        dataclasses.replace(base, seed=4, learning_rate=1e-3),
        dataclasses.replace(base, sae=dataclasses.replace(base.sae, architecture=TopK(k=2))),
    ]
    for config, got in zip(members, train_ensemble(members, PlantedStream(), progress=False), strict=True):
        want = quiet(config, PlantedStream())
        assert got.config == want.config
        jax.tree.map(lambda a, b: check_close(a, b, 1e-4), got.params, want.params)
        x = next(PlantedStream())["x"]
        assert float((got.encode(x) > 0).sum(1).max()) <= config.sae.architecture.k
    penalties = [make_run(ReLU(l1_coefficient=c), steps=6, sparsity_warmup_steps=3) for c in (0.1, 2.0)]
    for config, got in zip(penalties, train_ensemble(penalties, PlantedStream(), progress=False), strict=True):
        jax.tree.map(lambda a, b: check_close(a, b, 1e-4), got.params, quiet(config, PlantedStream()).params)


def test_an_ensemble_of_sites_on_a_mesh():
    class Two(PlantedStream):
        def __init__(self):
            super().__init__()
            self.widths = {"a": 16, "b": 16}

        def __next__(self):
            x = super().__next__()["x"]
            return {"a": x, "b": -2.0 * x}

    base = make_run(steps=5)
    members = [dataclasses.replace(base, sae=dataclasses.replace(base.sae, site=site)) for site in "ab"]
    together = train_ensemble(members, Two(), mesh=make_mesh(data=2, dict=4), progress=False)
    for config, got in zip(members, together, strict=True):
        jax.tree.map(lambda a, b: check_close(a, b, 1e-4), got.params, quiet(config, Two()).params)


def test_members_of_other_kinds_are_refused():
    with pytest.raises(ConfigError, match=r"(?s)Members 0 and 1 .*sae.architecture.name: 'topk' there, 'relu' here"):
        train_ensemble([make_run(), make_run(ReLU())], PlantedStream())


@pytest.mark.parametrize(
    ("architecture", "is_whole"),
    [(ReLU(l1_coefficient=0.1), True), (TopK(k=3), True), (BatchTopK(k=2), False)],
    ids=lambda a: getattr(a, "name", ""),
)
def test_parts_of_a_batch_add_up_to_its_gradient_and_are_the_same_on_a_mesh(architecture, is_whole):
    config = make_run(architecture, steps=3)
    parted = dataclasses.replace(config, accumulation=4)
    parts = quiet(parted, PlantedStream())
    cut = quiet(parted, PlantedStream(), mesh=make_mesh(data=4, dict=2))
    jax.tree.map(lambda a, b: check_close(a, b, 1e-4), cut.params, parts.params)
    if is_whole:  # BatchTopK chooses within each part
        whole = quiet(config, PlantedStream())
        jax.tree.map(lambda a, b: check_close(a, b, 1e-4), parts.params, whole.params)


@pytest.mark.parametrize("name", ["topk", "batch_topk", "relu_2023"])
def test_members_side_by_side_are_members_in_turn(name, monkeypatch):
    """On a device that is no CPU the members of an ensemble are taken side by side."""
    members = [make_run(ARCHITECTURES[name], steps=3, seed=seed, dead_after=60) for seed in range(3)]
    in_turn = train_ensemble(members, PlantedStream(), progress=False)
    monkeypatch.setattr(_program, "_platform", lambda layout: "tpu")
    _program._step.cache_clear()
    _program._first.cache_clear()
    for mesh in (None, make_mesh(data=2, dict=4)):
        side_by_side = train_ensemble(members, PlantedStream(), mesh=mesh, progress=False)
        for got, want in zip(side_by_side, in_turn, strict=True):
            jax.tree.map(lambda a, b: check_close(a, b, 1e-4), got.params, want.params)
    _program._step.cache_clear()
    _program._first.cache_clear()


def test_rows_may_lie_over_all_devices_where_latents_are_cut():
    config = make_run(steps=4)
    _, draw = planted()
    sample = lambda key, n: {"x": draw(key, n)}
    made = lambda mesh: from_function(sample, batch_size=64, key=jax.random.key(0), mesh=mesh)
    got = quiet(config, made(make_mesh(data=8)), mesh=make_mesh(data=1, dict=8))
    jax.tree.map(lambda a, b: check_close(a, b, 1e-4), got.params, quiet(config, made(None)).params)


def test_a_run_goes_on_to_the_bit(tmp_path):
    config = make_run(steps=12, checkpoint_every=5, sae=dict(normalize="unit"))
    want = quiet(config, PlantedStream(), folder=tmp_path / "whole")
    with pytest.raises(InputError, match=r"ran dry after 8 of 12 steps \(512 rows\)"):
        quiet(config, PlantedStream(last=8), folder=tmp_path / "cut")
    stream = PlantedStream()
    got = quiet(config, stream, folder=tmp_path / "cut")
    assert stream.taken == 12
    jax.tree.map(check_same, (got.params, got.scales), (want.params, want.scales))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    without = [[{k: v for k, v in row.items() if k != "seconds"} for row in part] for part in rows]
    assert [row["step"] for row in rows[0]] == [4, 5, 8, 10, 12]
    assert without[0] == without[1]
    again = quiet(config, PlantedStream(), folder=tmp_path / "cut")  # it is done: nothing is trained
    jax.tree.map(check_same, again.params, want.params)


def test_another_config_or_stream_is_not_gone_on_with(tmp_path):
    quiet(make_run(steps=2), PlantedStream(), folder=tmp_path)
    other = make_run(TopK(k=4), steps=2, learning_rate=1e-3)
    with pytest.raises(
        StoreMismatchError, match=r"learning_rate: 0.005 there, 0.001 here\n  sae.architecture.k: 3 there, 4"
    ):
        quiet(other, PlantedStream(), folder=tmp_path)
    with pytest.raises(StoreMismatchError, match=r"stream.batch_size: 64 there, 32 here"):
        quiet(make_run(steps=2), PlantedStream(batch_size=32), folder=tmp_path)
    quiet(make_run(steps=2, log_every=1, keep=9), PlantedStream(), folder=tmp_path)


def test_a_row_that_is_not_finite_is_named_and_the_state_stays_good(tmp_path):
    config = make_run(steps=8, log_every=8)
    with pytest.raises(InputError, match=r"Row 5 of step 4 \(x, document 405\) has a value that is not finite"):
        quiet(config, PlantedStream(spoil=3), folder=tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as kept:
        assert kept.steps == [8]
    sae = quiet(config, PlantedStream(), folder=tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sae.params))
    with pytest.raises(InputError, match="of rows that are finite.*Lower the learning rate"):
        quiet(dataclasses.replace(config, learning_rate=1e30), PlantedStream())


def test_a_first_batch_that_is_not_finite_leaves_nothing_behind(tmp_path):
    config = make_run(steps=3)
    with pytest.raises(InputError, match=r"Row 5 of step 1 \(x, document 105\)"):
        quiet(config, PlantedStream(spoil=0), folder=tmp_path)
    got = quiet(config, PlantedStream(), folder=tmp_path)
    jax.tree.map(check_same, got.params, quiet(config, PlantedStream()).params)


def test_good_steps_before_a_bad_one_are_told(tmp_path):
    with pytest.raises(InputError, match="Row 5 of step 4"):
        quiet(make_run(steps=8, log_every=8), PlantedStream(spoil=3), folder=tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3]


def test_what_was_trained_is_kept_when_the_stream_fails(tmp_path):
    class Failing(PlantedStream):
        def __next__(self):
            if self.taken == 7:
                raise InputError("resid_post.1 (document 9) is not finite")
            return super().__next__()

    config = make_run(steps=12)
    with pytest.raises(InputError, match="document 9"):
        quiet(config, Failing(), folder=tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as kept:
        assert kept.steps == [7]
    got = quiet(config, PlantedStream(), folder=tmp_path)
    jax.tree.map(check_same, got.params, quiet(config, PlantedStream()).params)


def test_a_run_is_looked_at_before_its_end(tmp_path):
    config = make_run(steps=12, checkpoint_every=5, sae=dict(normalize="unit"))
    with pytest.raises(InputError, match="ran dry"):
        quiet(config, PlantedStream(last=8), folder=tmp_path / "one")
    [now] = load_run(tmp_path / "one")
    [before] = load_run(tmp_path / "one", step=5)
    want = quiet(dataclasses.replace(config, steps=8), PlantedStream())
    jax.tree.map(check_same, (now.params, now.scales), (want.params, want.scales))
    assert now.config == config.sae and (np.asarray(before.params["W_dec"]) != now.params["W_dec"]).any()
    members = [dataclasses.replace(make_run(BatchTopK(k=k), steps=3), seed=k) for k in (2, 3)]
    mesh = make_mesh(data=2, dict=4)
    trained = train_ensemble(members, PlantedStream(), mesh=mesh, folder=tmp_path / "two", progress=False)
    for got, want in zip(load_run(tmp_path / "two"), trained, strict=True):
        jax.tree.map(check_same, got.params, want.params)
        assert got.config == want.config
    with pytest.raises(MissingFileError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(MissingFileError, match="no checkpoint of step 7"):
        load_run(tmp_path / "one", step=7)


def test_a_run_whose_text_ended_goes_on_with_more_epochs(tmp_path):
    model = make_model(n_ctx=16)
    ids = np.random.default_rng(0).integers(0, 11, (40, 12)).astype(np.int32)

    def stream(epochs):
        tokens = read_tokens(ids, n_ctx=12, batch_size=8, epochs=epochs, pack=False)
        return ActivationStream(
            model, make_params(model), tokens, ["embed"], batch_size=64, key=jax.random.key(0), exclude=()
        )

    sae = SAEConfig(architecture=TOPK, d_in=8, n_latents=16, site="embed")
    config = TrainConfig(sae=sae, steps=16, learning_rate=1e-3, log_every=4)
    with pytest.raises(InputError, match=r"ran dry after 7 of 16 steps .* more epochs"):
        quiet(config, stream(1), folder=tmp_path)
    goes_on = stream(None)
    quiet(config, goes_on, folder=tmp_path)
    assert goes_on.served == 16 * 64
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [4, 7, 8, 12, 16]
    other = dataclasses.replace(config, learning_rate=2e-3)
    with pytest.raises(StoreMismatchError, match="learning_rate"):
        quiet(other, stream(None), folder=tmp_path)


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path):
    class Nested(PlantedStream):
        def __next__(self):
            if self.taken == 1:
                with pytest.raises(SaveError, match="A training run in .* is going on already"):
                    quiet(make_run(steps=3), PlantedStream(), folder=tmp_path)
            return super().__next__()

    quiet(make_run(steps=3), Nested(), folder=tmp_path)


def test_dead_latents_are_resampled():
    architecture = ReLU(l1_coefficient=0.1, unit_norm=True, bias="mean")
    program = make_program([make_run(architecture, resample_steps=2, dead_after=100)])
    x = next(PlantedStream())["x"]
    state, _ = program.step(program.first(x, x), x, x)
    dead = np.arange(32) % 4 == 0
    state = dataclasses.replace(state, idle=jnp.where(dead, 150, 50))
    before = jax.tree.map(np.array, state)
    after = program.resample(state, x, x)
    for name in ("W_enc", "W_dec", "b_enc"):
        for old, new in ((before.params, after.params), (before.optimizer.mu, after.optimizer.mu)):
            check_same(new[name][~dead], old[name][~dead])
        assert (np.asarray(after.optimizer.mu[name])[dead] == 0).all() and (before.optimizer.mu[name][dead] != 0).any()
    rows = np.asarray(x) - np.asarray(after.params["b_dec"])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    new = {name: np.asarray(after.params[name])[dead] for name in ("W_enc", "W_dec", "b_enc")}
    np.testing.assert_allclose((new["W_dec"] @ rows.T).max(axis=1), 1.0, rtol=1e-5)
    length = 0.2 * np.linalg.norm(before.params["W_enc"][~dead], axis=1).mean()
    np.testing.assert_allclose(new["W_enc"], length * new["W_dec"], rtol=1e-4)
    assert (new["b_enc"] == 0).all()
    state = jax.tree.map(jnp.asarray, before)
    spoiled = program.resample(state, x.at[5].set(jnp.nan), x.at[5].set(jnp.nan))  # such a row is never drawn
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(spoiled.params))
    check_same(after.idle, np.where(dead, 0, 50))
    quiet(make_run(architecture, resample_steps=2, dead_after=100), PlantedStream())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sae=dict(site="y")), r"'y', 16 wide, is not in it; it has 'x' \(16 wide\)"),
        (dict(accumulation=3), r"batch_size=64 cannot be cut into 3 equal parts"),
    ],
)
def test_a_stream_that_does_not_fit(changes, message):
    with pytest.raises(InputError, match=message):
        quiet(make_run(**changes), PlantedStream())


def test_a_mesh_that_does_not_divide():
    config = dataclasses.replace(make_run(), sae=SAEConfig(architecture=TopK(k=3), d_in=16, n_latents=30))
    with pytest.raises(InputError, match=r"n_latents=30 is not a multiple of dict=4"):
        quiet(config, PlantedStream(), mesh=make_mesh(data=2, dict=4))
    with pytest.raises(InputError, match=r"Legal are the axes `data`"):
        quiet(make_run(), PlantedStream(), mesh=make_mesh(cells=8))
    with pytest.raises(InputError, match=r"batch_size=60 cannot be cut into 8"):
        quiet(make_run(), PlantedStream(batch_size=60), mesh=make_mesh(data=8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SAEConfig(architecture=TopK(k=9), d_in=4, n_latents=8),
            "k=9 of n_latents=8: a whole number from 1 to 8",
        ),
        (lambda: SAEConfig(architecture=TopK(k=2, multi_k=2), d_in=4, n_latents=8), "multi_k=2 is not above k=2"),
        (lambda: SAEConfig(architecture=ReLU(l1_coefficient=-1.0), d_in=4, n_latents=8), "l1_coefficient=-1.0"),
        (lambda: SAEConfig(architecture=ReLU(), d_in=4, n_latents=8, d_out=5), "there is no target"),
        (lambda: make_run(steps=0), "steps=0: a whole number of at least 1"),
        (lambda: make_run(warmup_steps=9, decay_steps=9), "do not fit into steps=12"),
        (lambda: make_run(resample_steps=5), "only ReLU"),
    ],
)
def test_configs_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_metrics_whose_last_line_was_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]
