"""Parameters over a mesh of eight forced devices, 2 of `data` and 4 of `tensor`, and over two real processes."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxinterp as ji
from jaxinterp.models import generate
from jaxinterp.nn import lookup
from jaxinterp.weights import partition_specs, shard
from jaxinterp.weights._mapping import flatten
from jaxinterp.weights._partition import _check_mesh
from tests.processes import result_of, run_two
from tests.tiny import FAMILIES, check_close, check_same, make_model, make_params, make_tokens

# With 9 positions, no part of a parameter is as large as an activation.
SIZES = dict(n_layers=2, n_ctx=17, n_heads=8, d_head=6, d_model=40, d_mlp=28)
KINDS = {
    "gpt2": dict(FAMILIES["gpt2"], d_vocab=23),  # 23 do not divide: the residual width is cut
    "llama": dict(FAMILIES["llama"], d_vocab=44, n_key_value_heads=4),
    "llama with 23 tokens": dict(
        FAMILIES["llama"], d_vocab=23, n_key_value_heads=2
    ),  # fewer than devices: whole on each
    "gemma3_text": dict(FAMILIES["gemma3_text"], d_vocab=44, attn_types=("local", "global")),
}
PARTS = {  # of one device of four
    "embed.W_E": (11, 40), "embed.W_pos": (17, 40), "unembed.W_U": (40, 11), "ln_final.w": (40,), "ln_final.b": (40,),
    "blocks.ln1.w": (2, 40), "blocks.ln1.b": (2, 40), "blocks.ln2.w": (2, 40), "blocks.ln2.b": (2, 40),
    "blocks.attn.W_Q": (2, 2, 40, 6), "blocks.attn.W_K": (2, 2, 40, 6), "blocks.attn.W_V": (2, 2, 40, 6),
    "blocks.attn.W_O": (2, 2, 6, 40), "blocks.attn.b_Q": (2, 2, 6), "blocks.attn.b_K": (2, 2, 6), "blocks.attn.b_V": (2, 2, 6),
    "blocks.attn.b_O": (2, 40), "blocks.mlp.W_in": (2, 40, 7), "blocks.mlp.W_gate": (2, 40, 7), "blocks.mlp.W_out": (2, 7, 40),
    "blocks.mlp.b_in": (2, 7), "blocks.mlp.b_out": (2, 40), "blocks.attn.q_norm.w": (2, 6), "blocks.attn.k_norm.w": (2, 6),
    "blocks.ln1_post.w": (2, 40), "blocks.ln2_post.w": (2, 40), "embed.W_token_type": (2, 40), "embed.ln.w": (40,),
    "embed.ln.b": (40,), "mlm_head.W": (40, 40), "mlm_head.b": (40,), "mlm_head.ln.w": (40,), "mlm_head.ln.b": (40,),
    "unembed.b_U": (11,),
}  # fmt: skip
OTHER_PARTS = {
    "gpt2": {"embed.W_E": (23, 10)},
    "llama": {"blocks.attn.W_K": (2, 1, 40, 6), "blocks.attn.W_V": (2, 1, 40, 6)},
    "llama with 23 tokens": {"embed.W_E": (23, 10), "unembed.W_U": (10, 23)},
}

COLLECTIVES = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute|collective-broadcast"


@pytest.fixture(scope="module")
def mesh():
    return ji.mesh.make_mesh(data=2, tensor=4)


def tame(params):
    """With smaller scores of attention: on sums in another order a large score, and so the softmax, differs visibly."""
    smaller = {"W_Q": 0.25, "W_K": 0.25}
    return jax.tree_util.tree_map_with_path(lambda path, x: x * smaller.get(path[-1].key, 1.0), params)


def parts(params):
    """The shape of each parameter's part on a device, the same on all."""
    shapes = {path: {s.data.shape for s in leaf.addressable_shards} for path, leaf in flatten(params).items()}
    assert all(len(found) == 1 for found in shapes.values())
    return {path: found.pop() for path, found in shapes.items()}


def moved_parameters(program, params):
    """Lines of a compiled program that send a parameter, a layer of one, or a part of one, to other devices: by size, since
    the compiler may give them another shape."""
    shapes = [shape for x in jax.tree.leaves(params) for shape in (x.shape, x.addressable_shards[0].data.shape)]
    sizes = {math.prod(shape) for shape in [*shapes, *(shape[1:] for shape in shapes)]}
    assert not any(size % 9 == 0 for size in sizes), (
        "every activation has 9 positions, so no parameter may look like one"
    )
    shape_of = dict(re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", program))
    lines = []
    for line in program.splitlines():
        sent = re.search(rf" (?:{COLLECTIVES})(?:-start)?\((.*?)\)", line)
        for name in re.findall(r"%([\w.-]+)", sent.group(1)) if sent else ():
            if math.prod(int(n) for n in shape_of[name].split(",") if n) in sizes:
                lines.append(line.strip())
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_sends_no_parameter(kind, mesh):
    model = make_model(**KINDS[kind] | SIZES)
    whole, tokens = tame(make_params(model)), make_tokens(4, 9, vocab=model.config.d_vocab)
    params = shard(whole, mesh)
    assert parts(params) == {path: (PARTS | OTHER_PARTS.get(kind, {}))[path] for path in flatten(params)}
    batch = ji.mesh.put(tokens, mesh, P("data"))
    compiled = jax.jit(model.forward).lower(params, batch).compile()
    assert moved_parameters(compiled.as_text(), params) == []
    check_close(compiled(params, batch), model.forward(whole, tokens))


def test_a_gathered_parameter_is_found(mesh):
    model = make_model(**KINDS["llama"] | SIZES)
    params = shard(make_params(model), mesh)
    batch = ji.mesh.put(make_tokens(4, 9), mesh, P("data"))

    def careless(params, tokens):
        return model.forward(jax.lax.with_sharding_constraint(params, NamedSharding(mesh, P())), tokens)

    def careless_in_a_layer(params, tokens):
        gather = lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
        body = lambda x, w: (
            x + jnp.einsum("btd,df->btf", x, gather(w), precision="highest").sum(-1, keepdims=True),
            None,
        )
        return jax.lax.scan(
            body,
            model.embed(params, tokens, positions=jnp.zeros((1, 9), jnp.int32)),
            params["blocks"][0]["mlp"]["W_in"],
        )

    for function in (careless, careless_in_a_layer):
        lines = moved_parameters(jax.jit(function).lower(params, batch).compile().as_text(), params)
        assert any("all-gather" in line for line in lines), function


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_for_every_family(name, mesh):
    shapes = make_model(
        **FAMILIES[name] | SIZES | dict(d_vocab=44, n_key_value_heads=8, attn_types=None)
    ).param_shapes()
    specs = flatten(partition_specs(shapes, mesh))
    got = {path: NamedSharding(mesh, specs[path]).shard_shape(leaf.shape) for path, leaf in flatten(shapes).items()}
    all_heads = {f"blocks.attn.{letter}_norm.w": (2, 8, 6) for letter in "qk"} if name == "olmo2" else {}
    assert got == {path: (PARTS | all_heads)[path] for path in got}


@pytest.fixture(scope="module")
def problem(mesh):
    """(model, whole parameters, tokens, the same parameters and tokens on the mesh)."""
    model = make_model(**KINDS["llama with 23 tokens"] | SIZES)
    whole, tokens = tame(make_params(model)), make_tokens(4, 9, vocab=model.config.d_vocab)
    return model, whole, tokens, shard(whole, mesh), ji.mesh.put(tokens, mesh, P("data"))


def test_captures_and_edits_give_the_results_of_one_device(problem):
    model, whole, tokens, params, batch = problem
    handlers = ji.zero("attn.z", layer=1, head=3), ji.capture("attn.z", "attn.pattern", "resid_post")
    looked = jax.jit(ji.run(model.forward, *handlers))
    for got, want in zip(jax.tree.leaves(looked(params, batch)), jax.tree.leaves(looked(whole, tokens)), strict=True):
        check_close(got, want)


def test_generation_gives_the_results_of_one_device(problem):
    model, whole, tokens, params, batch = problem
    grow = jax.jit(lambda params, tokens: generate(model, params, tokens, max_new_tokens=4))
    check_same(grow(params, batch), grow(whole, tokens))
    lm = lambda params: ji.LanguageModel(model=model, params=params)
    assert [row.id for row in lm(params).predict(tokens[0], k=3)] == [
        row.id for row in lm(whole).predict(tokens[0], k=3)
    ]


def test_a_sweep_gives_the_results_of_whole_forwards_on_one_device(mesh):
    model = make_model(n_heads=4, n_key_value_heads=2, d_vocab=12, d_mlp=None, attn_only=True, normalization_type=None)
    whole, base = tame(make_params(model)), make_tokens(2, 5, vocab=12)
    source = base[:, ::-1]

    @jax.jit
    def difference(layer):
        acts = ji.run(model.forward, ji.capture("attn.out"))(whole, source)[1]["attn.out"]
        patch = ji.patch("attn.out", acts[layer], layer=layer)
        last = ji.run(model.forward, patch)(whole, base)[0][:, 4] - model.forward(whole, base)[:, 4]
        return jnp.mean(last[jnp.arange(2), jnp.arange(2)] - last[jnp.arange(2), jnp.arange(2) + 5])

    effects = ji.patching.sweep(
        model, shard(whole, mesh), base=base, source=source, site="attn.out", over="layer", progress=False,
        metric=ji.patching.logit_difference(np.arange(2), np.arange(2) + 5, np.full(2, 4)),
    ).effect  # fmt: skip
    check_close(effects, [difference(jnp.int32(layer)) for layer in range(3)])


def test_ids_out_of_range_are_nan_on_a_cut_vocabulary(mesh):
    table = ji.mesh.put(np.ones((44, 3), np.float32), mesh, P("tensor"))
    rows = jax.jit(lookup)(table, jnp.array([0, 43, 44, -1, 99]))
    check_same(np.isnan(rows).any(1), [False, False, True, True, True])


FOLDER = dict(num_attention_heads=8, num_key_value_heads=4, hidden_size=24, intermediate_size=40)


def test_load_gives_each_device_its_part(llama, gpt2, mesh):
    for folder in (llama(**FOLDER).write(shards=2), gpt2(n_embd=24, n_head=4).write()):
        for dtype in ("float32", "bfloat16"):
            lm, whole = ji.load(folder, mesh=mesh, dtype=dtype), ji.load(folder, dtype=dtype).params
            want = shard(whole, mesh)
            for path, leaf in flatten(lm.params).items():
                assert leaf.sharding == flatten(want)[path].sharding and leaf.committed
                for got, other in zip(leaf.addressable_shards, flatten(want)[path].addressable_shards, strict=True):
                    assert got.device == other.device and got.index == other.index
                    check_same(np.asarray(got.data, np.float32), np.asarray(other.data, np.float32))
            assert not any(leaf.committed for leaf in jax.tree.leaves(whole))
    saved = ji.save(ji.load(folder, mesh=mesh), folder.parent / "again")
    assert (saved / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_rules_go_before_the_table(llama, mesh):
    rules = {"blocks.attn.W_[KV]": P(None, None, "tensor"), "blocks.mlp.*": (P("tensor"), P("data")), "*ln*": P()}
    params = ji.load(llama(**FOLDER).write(), mesh=mesh, rules=rules).params
    found = parts(params)
    assert found["blocks.attn.W_K"] == (2, 4, 6, 4) and found["blocks.attn.W_Q"] == (2, 2, 24, 4)
    assert found["blocks.mlp.W_in"] == (1, 24, 40), "2 layers over 2, since 4 do not divide them"
    assert parts(shard(params, mesh))["blocks.mlp.W_in"] == (2, 24, 10), "and back to the table"
    other = ji.mesh.make_mesh(cells=8)
    assert parts(shard(params, other, {"embed.W_E": P(None, "cells")}))["embed.W_E"] == (261, 3)
    assert parts(shard(params, ji.mesh.make_mesh(data=8)))["blocks.attn.W_Q"] == (2, 8, 24, 4), "copies"


def test_a_mesh_that_does_not_divide(llama, mesh):
    folder = llama(**FOLDER | {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 42}).write()
    with pytest.raises(ji.InputError) as caught:
        ji.load(folder, mesh=mesh)
    message = str(caught.value)
    assert "{'data': 2, 'tensor': 4} does not divide 5 parameters" in message
    assert "blocks.attn.W_Q [2, 6, 24, 4]" in message and "blocks.mlp.W_gate [2, 24, 42]" in message
    assert "W_K" not in message and "W_E" not in message
    assert "tensor = 1, 2, 3, 6" in message
    rules = eval(message[message.index("rules={") + 6 : -1], {"P": P})  # the way out that the message names
    assert parts(ji.load(folder, mesh=mesh, rules=rules).params)["blocks.attn.W_Q"] == (2, 6, 24, 4)


@pytest.mark.parametrize(
    ("axes", "rules", "words"),
    [
        ({"data": 2, "tensors": 4}, None, r"No rule speaks of the axes \['tensors'\].*make_mesh\(data=2, tensor=4\)"),
        (
            {"tensor": 4},
            {"blocks.attn.W_k": P()},
            "'blocks.attn.W_k' fits no parameter.*Did you mean 'blocks.attn.W_",
        ),
        ({"tensor": 4}, {"embed.W_E": P("rows")}, r"the axes \['rows'\]; the mesh has \{'tensor': 4\}"),
        ({"tensor": 4}, {"embed.W_E": "tensor"}, "'tensor', which is no jax.sharding.PartitionSpec"),
        ({"tensor": 4}, {"embed.W_E": ()}, "no jax.sharding.PartitionSpec"),
        ({"tensor": 4}, {"ln_final.w": P(None, "tensor")}, r"ln_final.w \[40\], by"),
    ],
)
def test_rules_and_meshes_that_do_not_fit(axes, rules, words):
    shapes = make_model(**KINDS["llama"] | SIZES).param_shapes()
    with pytest.raises(ji.InputError, match=f"(?s){words}"):
        partition_specs(shapes, ji.mesh.make_mesh(**axes), rules)


def test_other_things_than_meshes_and_parameters(llama, mesh):
    lm = ji.load(llama(**FOLDER).write())
    with pytest.raises(ji.InputError, match=r"lm\.params"):
        shard(lm, mesh)
    with pytest.raises(ji.InputError, match=r"mesh = 4 is no .*make_mesh"):
        _check_mesh(4, {})  # the annotation of shard is checked in tests alone
    with pytest.raises(ji.InputError, match="Explicit.*make_mesh"):
        shard(lm.params, jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Explicit,) * 2))
    with pytest.raises(ji.InputError, match="mesh=mesh, rules=rules"):
        ji.load(lm.source["folder"], rules={})


WORKER = """
import json, sys
import numpy as np
import jax
from jax.sharding import PartitionSpec as P
import jaxinterp as ji
from jaxinterp.weights import _assemble

process, address, good, bad = int(sys.argv[1]), *sys.argv[2:]
ji.mesh.start(address, num_processes=2, process_id=process)
jax.config.update("jax_disable_most_optimizations", True)
mesh = ji.mesh.make_mesh(data=1, tensor=8)
read = []
look = _assemble._Seen.look
counted = read
_assemble._Seen.look = lambda self, values: (counted.append(values.size), look(self, values))
lm = ji.load(good, mesh=mesh)
read = sum(read)
own = sum(s.data.size for x in jax.tree.leaves(lm.params) for s in {str(s.index): s for s in x.addressable_shards}.values())
best = lm.predict(np.arange(6), k=3)
try:
    ji.load(bad, mesh=mesh)
    refused = ""
except ji.WeightsError as error:
    refused = str(error)
try:
    ji.save(lm, good + "-again")
    kept = "written"
except ji.InputError as error:
    kept = str(error)
print("RESULT" + json.dumps({
    "kept": kept, "best": [(row.id, row.logit) for row in best], "read": read, "own": own, "refused": refused,
    "all": sum(x.size for x in jax.tree.leaves(lm.params)), "said": ji.mesh.from_all("ä" * (process + 1)),
}))
"""


def test_two_processes_read_their_parts_and_agree_with_one(llama, tmp_path):
    made = llama(**FOLDER)
    good, one = made.write(shards=2), ji.load(made.folder)
    made.folder = tmp_path / "bad"
    made.tensors["model.layers.1.self_attn.q_proj.weight"][-1, 3] = np.nan  # the last head lies with process 1
    want = one.predict(np.arange(6), k=3)
    for output in run_two(WORKER, str(good), str(made.write())):
        got = result_of(output)
        assert [i for i, _ in got["best"]] == [row.id for row in want]
        check_close([logit for _, logit in got["best"]], [row.logit for row in want])
        assert got["read"] == got["own"] < 0.75 * got["all"]
        assert "model.layers.1.self_attn.q_proj.weight (1 NaN" in got["refused"], "both are told"
        assert "save_tree(lm.params, folder)" in got["kept"]
        assert got["said"] == ["ä", "ää"]


FORWARD = """
import json, sys
import jaxinterp as ji

ji.mesh.start(sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from tests.tiny import make_model, make_params, make_tokens
from tests.weights.test_partition import KINDS, SIZES, moved_parameters, parts, tame

model = make_model(**KINDS["llama"] | SIZES)
whole, tokens = tame(make_params(model)), make_tokens(4, 9, vocab=model.config.d_vocab)
mesh = ji.mesh.make_mesh(data=2, tensor=4)
params, batch = ji.weights.shard(whole, mesh), ji.mesh.put(tokens, mesh, P("data"))
compiled = jax.jit(model.forward).lower(params, batch).compile()
got, want = ji.mesh.fetch(compiled(params, batch)), np.asarray(model.forward(whole, tokens))
print("RESULT" + json.dumps({
    "parts": parts(params), "moved": moved_parameters(compiled.as_text(), params),
    "error": float(abs(got - want).max() / abs(want).max()), "local": got.shape == want.shape and not batch.is_fully_addressable,
}))
"""


def test_two_processes_send_no_parameter_and_give_the_results_of_one_device():
    for output in run_two(FORWARD):
        got = result_of(output)
        assert got["moved"] == [] and got["error"] < 1e-5 and got["local"]
        want = PARTS | OTHER_PARTS["llama"]
        assert got["parts"] == {path: list(want[path]) for path in got["parts"]} and len(got["parts"]) == 12
