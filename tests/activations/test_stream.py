"""Streams of activations: every row once, from everywhere, the same after a restore."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxinterp as ji
from jaxinterp._errors import InputError, SiteIndexError, StreamEmptyError, TokenError, UnvisitedSiteError
from jaxinterp.activations import ActivationStream, read_tokens
from jaxinterp.store import Checkpoints, StoreMismatchError, load_tree, save_tree
from tests.activations.conftest import LETTERS, N_CTX, TEXTS, Letters, check_rows, joined, make, served


@pytest.mark.parametrize("devices, pack", [(1, True), (8, True), (1, False)])
def test_every_row_is_served_once(model, params, brute, devices, pack):
    stream = make(model, params, devices=devices, tokens=dict(pack=pack))
    assert stream.widths == {"resid_post.1": 8, "embed": 8, "mlp.out.0": 8, "attn.z.1": 16}
    batches, documents = served(stream)
    assert stream._refills >= 4 and stream.served == 16 * (len(batches) - 1) and len(documents[-1]) < 16
    check_rows(*joined(batches, documents), *brute)
    with pytest.raises(StreamEmptyError, match=f"{stream.served} were served.*{len(documents[-1])} are left.*epochs"):
        next(stream)


def test_a_pass_stops_behind_the_last_layer(model, params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert make(model, half, sites=["embed"]).dtype == jnp.bfloat16
    assert make(model, half, sites=["embed", ("mlp.norm_scale", 0)]).dtype == jnp.float32
    stop = lambda *sites: make(model, params, sites=sites)._source.stop
    assert [stop("embed"), stop("embed", ("resid_pre", 1)), stop(("mlp.out", 2)), stop("logits")] == [0, 2, 3, None]
    stream = make(model, params, sites=["final.in", "resid_post.2"], buffer_size=None)
    for batch in stream:
        np.testing.assert_array_equal(batch["final.in"], batch["resid_post.2"])


def test_two_passes_and_a_cut_model(model, params, brute):
    """On a mesh with an axis that cuts the parameters and an idle one; padding and chosen positions are left out."""
    mesh = ji.mesh.make_mesh(data=2, tensor=2, dict=2)
    cut = ji.mesh.put(params, mesh, ji.weights.partition_specs(params, ji.mesh.make_mesh(data=2, tensor=2)))
    stream = make(model, cut, mesh=None, tokens=dict(epochs=2, seed=1), sites=[("resid_post", 1)], exclude=[10])
    assert stream.mesh == mesh and stream._source._plan[-1] == P(("data", "dict"))
    rows, documents = joined(*served(stream))
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), brute)
    check_rows(rows, documents, *twice)
    only = make(model, params, sites="embed", exclude=(), exclude_positions=[0, 1])
    _, documents = joined(*served(only))
    assert len(documents) == len(brute[1]) - len([1 for t in TEXTS for i in range(0, len(t), 11)])


def test_batches_are_sharded_slices_and_nothing_compiles_twice(model, params, count_compiles):
    stream = make(model, params, devices=8, tokens=dict(epochs=None))
    next(stream)
    with count_compiles() as compiles:
        batch = [next(stream) for _ in range(40)][-1]
    assert stream._refills > 3 and compiles.names == []
    for name, x in batch.items():
        assert [shard.data.shape for shard in x.addressable_shards] == [(2, stream.widths[name])] * 8
    values = stream._values
    next(stream)
    assert stream._values is values  # a batch copies nothing but itself
    first = [next(make(model, params, devices=8, seed=seed))["embed"] for seed in (0, 1)]
    assert not np.array_equal(*first), "the key decides the order"


def test_rows_are_appended_in_place(model, params):
    stream = make(model, params)
    next(stream)
    place = lambda: [x.unsafe_buffer_pointer() for x in (*stream._values.values(), stream._documents)]
    before = place()
    stream._append(1)
    assert place() == before


@pytest.mark.parametrize("devices", [1, 8])
def test_a_restored_stream_goes_on_to_the_bit(model, params, devices, tmp_path):
    stream = make(model, params, devices=devices, tokens=dict(epochs=3, seed=0))
    for _ in range(11):
        next(stream)
    save_tree(stream.state(), tmp_path / "state")
    want = served(stream, 30)
    other = make(model, params, devices=devices, seed=9, tokens=dict(epochs=3, seed=0))
    next(other)
    other.restore(load_tree(tmp_path / "state", like=other.state()))
    got = served(other, 30)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    with pytest.raises(StoreMismatchError, match="tokens.epochs was 3, is 1"):
        make(model, params, devices=4, tokens=dict(seed=0)).restore(stream.state())
    with pytest.raises(StoreMismatchError, match=f"devices was {devices}, is 2"):
        make(model, params, devices=2, tokens=dict(epochs=3, seed=0)).restore(stream.state())


@pytest.mark.parametrize("devices", [1, 8])
def test_a_stream_that_ended_goes_on_with_more_epochs(model, params, brute, devices):
    start = lambda epochs: make(model, params, devices=devices, tokens=dict(seed=0, epochs=epochs))
    stream = start(1)
    batches, documents = served(stream)
    same = start(1)
    same.restore(stream.state())
    jax.tree.map(np.testing.assert_array_equal, same.remainder(), stream.remainder())
    with pytest.raises(StreamEmptyError):
        next(same)
    other = start(3)
    other.restore(stream.state())
    more, numbers = served(other)
    assert other.served == 3 * len(brute[1]) // 16 * 16
    rows = joined(more, numbers)
    left = jax.tree.map(lambda x: x[len(x) - len(documents[-1]) :], joined(batches, documents))
    check_rows(*rows, *jax.tree.map(lambda x, y: np.concatenate([x, y, y]), left, brute))
    with pytest.raises(StoreMismatchError, match="tokens.epochs was 3, is 2.*from the 3 on"):
        start(2).restore(other.state())
    endless = start(None)
    endless.restore(other.state())
    assert len(served(endless, 50)[0]) == 50
    start(2).restore(endless_state := start(None).state())  # none was begun
    with pytest.raises(StoreMismatchError, match="tokens.seed was 0, is 1"):
        make(model, params, devices=devices, tokens=dict(seed=1, epochs=3)).restore(endless_state)


def test_a_state_is_of_one_set_of_weights(model, params):
    stream = make(model, params)
    other = jax.tree.map(lambda x: x, params)
    other["embed"]["W_E"] = params["embed"]["W_E"].at[2, :2].multiply(-1)
    with pytest.raises(StoreMismatchError, match="params was"):
        make(model, other).restore(stream.state())
    mesh = ji.mesh.make_mesh(data=2, tensor=2, dict=2)
    cut = ji.mesh.put(params, mesh, ji.weights.partition_specs(params, ji.mesh.make_mesh(data=2, tensor=2)))
    assert make(model, cut, mesh=None).description["params"] == stream.description["params"]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert make(model, half).description["params"] != stream.description["params"]


def test_a_restore_holds_two_pools_at_most(model, params, monkeypatch):
    stream, other = (make(model, params, devices=8, sites=["embed"]) for _ in range(2))
    next(stream)
    next(other)
    state, shape, seen = stream.state(), stream._values["embed"].shape, []
    pools = lambda: sum(x.shape == shape for x in jax.live_arrays())

    def watched(call, *args, **kwargs):
        out = call(*args, **kwargs)
        seen.append(pools())
        return out

    before = pools()
    with monkeypatch.context() as patched:
        patched.setattr(jax, "device_put", functools.partial(watched, jax.device_put))
        patched.setattr(jnp, "copy", functools.partial(watched, jnp.copy))
        other.restore(state)
    assert seen and max(seen) == pools() == before
    pointers = lambda x: {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
    assert not pointers(other._values["embed"]) & pointers(state["values"]["embed"])
    want = served(other)
    other.restore(state)  # the state is whole
    jax.tree.map(np.testing.assert_array_equal, served(other), want)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_shapes_of_a_state_cost_no_pool(model, params, devices, tmp_path):
    stream = make(model, params, devices=devices)
    next(stream)
    state = stream.state()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"stream": state})
        checkpoints.wait()
        save_tree(state, tmp_path / "tree")
        want = served(stream)
        other = make(model, params, devices=devices, seed=3)
        before = len(jax.live_arrays())
        shapes = other.state_shapes()
        assert len(jax.live_arrays()) == before
        assert jax.tree.structure(shapes) == jax.tree.structure(state)
        pool = {name: shapes[name] for name in ("values", "documents")}
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(pool))
        for got in (checkpoints.restore({"stream": shapes})["stream"], load_tree(tmp_path / "tree", like=shapes)):
            assert got["values"]["embed"].sharding.is_equivalent_to(state["values"]["embed"].sharding, 2)
            other.restore(got)
            jax.tree.map(np.testing.assert_array_equal, served(other), want)


def test_bfloat16_is_kept(model, params, brute):
    stream = make(model, params, dtype="bfloat16")
    assert stream.dtype == jnp.bfloat16
    rows, documents = joined(*served(stream))
    assert {x.dtype for x in rows.values()} == {jnp.dtype("bfloat16")}
    check_rows(rows, documents, *brute, tolerance=2**-8)


@pytest.mark.parametrize("devices", [1, 8])
def test_documents_of_a_batch_come_from_everywhere(shared, devices):
    """The share of pairs of one document, beside that of a uniform draw from what was read and not yet used."""
    lm = ji.load(shared / "stories260k")
    tokens = read_tokens(shared / "tinystories.txt", lm.tokenizer, n_ctx=64, batch_size=16)
    stream = ActivationStream(
        lm.model, lm.params, tokens, [("resid_post", 0)], batch_size=256, key=jax.random.key(0),
        mesh=ji.mesh.make_mesh(data=devices),
    )  # fmt: skip
    pairs = lambda documents: (
        (np.bincount(documents) * (np.bincount(documents) - 1.0)).sum() / len(documents) / (len(documents) - 1)
    )
    found, uniform = [], []
    for _ in range(48):
        next(stream)
        batch, rest = np.asarray(stream.documents()), stream.remainder()[1]
        found.append(pairs(batch))
        uniform.append(pairs(np.concatenate([batch, rest])))
    assert stream._refills >= 3
    assert 0.9 < np.mean(found) / np.mean(uniform) <= 1.1, (np.mean(found), np.mean(uniform))


def test_nan_is_found_before_it_is_served(model, params, tmp_path):
    texts = [text.replace("i", "a") for text in TEXTS]
    texts[25] = texts[25][:3] + "i" + texts[25][3:]
    broken = jax.tree.map(lambda x: x, params)
    broken["embed"]["W_E"] = params["embed"]["W_E"].at[8].set(jnp.inf)
    stream = make(model, broken, texts=texts, devices=8, sites=["embed", ("resid_post", 0)])
    with pytest.raises(InputError, match=r"embed \(document 25\), resid_post.0 \(document 25\)"):
        for _ in stream:
            assert all(np.isfinite(x).all() for x in _.values())
    assert stream.served > 0
    with pytest.raises(InputError, match="document 25"):
        next(stream)
    other = make(model, broken, texts=texts, devices=8, sites=["embed", ("resid_post", 0)])
    good = other.state()
    save_tree(stream.state(), tmp_path / "state")
    other.restore(load_tree(tmp_path / "state", like=other.state_shapes()))
    for ask in (lambda: next(other), other.remainder):
        with pytest.raises(InputError, match=r"embed \(document 25\), resid_post.0 \(document 25\)"):
            ask()
    other.restore(good)
    assert np.isfinite(next(other)["embed"]).all()


def test_special_tokens_are_left_out_or_have_to_be_named(model, params, brute):
    class Chat(Letters):
        special_ids = (3, 10)

    how = dict(n_ctx=N_CTX, batch_size=8)
    stream = lambda tokens, **more: ActivationStream(
        model, params, tokens, ["embed"], batch_size=16, buffer_size=240, key=jax.random.key(0), **more
    )
    rows, documents = joined(*served(stream(read_tokens(TEXTS, Chat(), **how))))
    assert len(documents) == len(brute[1]) - sum(text.count("d") for text in TEXTS)
    assert not (rows["embed"][:, None] == np.asarray(params["embed"]["W_E"])[3]).all(-1).any()
    ids = np.random.default_rng(0).integers(0, 9, (20, N_CTX))
    ids[:, 0] = 10
    with pytest.raises(InputError, match=r"without a tokenizer.*exclude=\(\)"):
        stream(read_tokens(ids, **how))
    count = lambda tokens, **more: len(joined(*served(stream(tokens, **more)))[1])
    assert count(read_tokens(ids, **how), exclude=()) == ids.size
    assert count(read_tokens(ids, **how), exclude=[10]) == count(read_tokens(ids, LETTERS, **how)) == ids.size - 20


def test_what_cannot_be_streamed(model, params):
    for more, kind, message in [
        (dict(sites=[("resid_post", 3)]), SiteIndexError, "0 to 2"),
        (dict(sites=["resid_post"]), SiteIndexError, "one layer"),
        (dict(sites=[("embed", 1)]), SiteIndexError, "in no layer"),
        (dict(sites=["resid"]), UnvisitedSiteError, "resid_pre"),
        (dict(sites=[("attn.pattern", 1)]), TypeError, "BHTS"),
        (dict(sites=[]), InputError, "sites is empty"),
        (dict(batch_size=15, devices=8), InputError, "8 devices"),
        (dict(buffer_size=100), InputError, "Give 194 or more"),
        (dict(exclude="bos"), InputError, "special"),
        (dict(dtype="int32"), InputError, "floating"),
        (dict(tokens=dict(n_ctx=13)), InputError, "n_ctx=12 or less"),
        (dict(tokens=dict(batch_size=4), devices=8), InputError, "multiple of 8"),
        (dict(tokens=dict(shard=(1, 2))), InputError, r"shard=\(0, 1\)"),
        (dict(mesh=ji.mesh.make_mesh(rows=1)), InputError, "no axis `data`"),
    ]:
        with pytest.raises(kind, match=message):
            make(model, params, **more)
    with pytest.raises(InputError, match="leave nothing"):
        next(make(model, params, exclude=range(11), tokens=dict(epochs=None)))
    with pytest.raises(TokenError, match="vocabulary of 11"):
        next(make(model, params, texts=["az"]))
    with pytest.raises(StreamEmptyError, match="had 3 rows, and 0 were served"):
        next(make(model, params, texts=["abc"]))


@pytest.mark.parametrize("epochs", [1, 3, None])
def test_an_epoch_without_a_kept_row_is_an_error_soon(model, params, epochs):
    """ "kk" is BOS twice, one of which a text may name itself."""
    stream = make(model, params, texts=["kk", "kkk"], buffer_size=10**5, tokens=dict(epochs=epochs))
    compute, passes = stream._source.compute, []
    stream._source.compute = lambda batch: (passes.append(0), compute(batch))[1]
    with pytest.raises(InputError, match="list of 2 texts gives no row.*leave nothing of these tokens. Exclude less"):
        next(stream)
    assert len(passes) <= 2


@pytest.mark.parametrize("seed", [None, 0])
def test_few_kept_rows_are_enough(model, params, seed):
    """One row in an epoch of many batches, in a document that may wait."""
    texts = ["k" * 200] * 3 + ["k" * 100 + "a"] + ["kkkk"] * 20
    stream = make(model, params, texts=texts, tokens=dict(epochs=None, seed=seed), sites="embed")
    tokens, kept = stream._source.tokens, 0
    while tokens.passes < 12:
        chunk = stream._source.read()
        assert not chunk.is_barren
        kept += chunk.is_kept.sum()
    assert 9 <= kept <= 12


def test_a_source_that_is_read_many_times_is_told_once(model, params):
    stream = make(model, params, texts=["abcdefg"], tokens=dict(epochs=None), sites="embed")
    with pytest.warns(
        UserWarning, match=r"list of 1 text was read \d{3} times.* about 7 rows, .*batch of 16"
    ) as caught:
        for _ in range(100):
            next(stream)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = make(model, params, texts=["abcdefg"], tokens=dict(epochs=80), sites="embed")
        assert len(served(few)[0]) == 36
        more = make(model, params, texts=["abcdefg"] * 3, tokens=dict(epochs=None), sites="embed")
        assert len(served(more, 200)[0]) == 200 and more._passes > 100
