"""Streams of activations: every row once, from everywhere, the same after a restore."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxinterp as ji
from jaxinterp._errors import InputError, SiteIndexError, StreamEmptyError, TokenError, UnvisitedSiteError
from jaxinterp.activations import ActivationStream, read_tokens
from jaxinterp.store import StoreMismatchError, load_tree, save_tree
from tests.activations.conftest import TEXTS, check_rows, joined, make, served


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


def test_nan_is_found_before_it_is_served(model, params):
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
