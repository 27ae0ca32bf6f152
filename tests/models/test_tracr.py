"""Every compiled program gives its outputs, and its residual stream, in our model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.models.tracr import read_program
from tests.tiny import check_close

NAMES = ("causal_hist", "count_a", "frac_prevs", "hist", "length", "reverse", "shuffle_dyck1", "sort_unique")
SITES = ("embed", "resid_mid", "resid_post")


@pytest.fixture(scope="module", params=NAMES)
def ran(request, shared):
    """A program, and its run on all cases and on the two reference inputs; cases of all lengths in one padded batch."""
    program = read_program(shared / "tracr", request.param)
    rows = [case["input_ids"] for case in program.about["cases"]] + program.ids.tolist()
    width = max(map(len, rows))
    tokens = jnp.array([row + [0] * (width - len(row)) for row in rows], jnp.int32)
    mask = jnp.array([[t < len(row) for t in range(width)] for row in rows])
    forward = ji.run(program.model.forward, ji.capture(*SITES))
    out, acts, _ = jax.jit(lambda p, t: forward(p, t, mask=mask))(program.params, tokens)
    return program, np.asarray(out), acts


def test_every_case_gives_its_output(ran):
    program, values, _ = ran
    output, scored = program.about["output"], 0
    for i, case in enumerate(program.about["cases"]):
        for position, want in enumerate(case["output"]):
            if want is None:
                continue
            scored += 1
            got = values[i, position]
            if output["kind"] == "categorical":
                assert np.argmax(got) == case["output_ids"][position]
                assert output["values"][np.argmax(got)] == str(want)
            else:
                assert abs(got[0] - want) <= output["tolerance"]
    assert scored > 20


def test_the_residual_stream_is_the_reference(ran):
    program, _, acts = ran
    want = program.residuals.swapaxes(0, 1)
    rows = lambda name: np.asarray(acts[name])[..., -2:, : want.shape[2], :]
    check_close(rows("embed"), want[0])
    check_close(rows("resid_mid"), want[1::2], 1e-4)
    check_close(rows("resid_post"), want[2::2], 1e-4)
