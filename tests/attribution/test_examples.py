"""The Python of `docs/gradients.md` runs as it stands, and its examples learn what they say."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gradients.md"


def test_the_examples_of_the_page_learn(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # a user's settings
        exec(blocks[0], names)
        exec(blocks[1], names)
        assert names["before"] > 5 and names["learn"](names["vector"])[0] < 0.1
        exec(blocks[2], names)
        on = names["logit"] > 0
        assert 1 <= int(on.sum()) < 8 and bool(on[0, 0])  # the previous-token head is needed
        answers = jax.jit(names["masked"])(jnp.where(on, 30.0, -30.0)).argmax(-1)
        assert float((answers == names["pairs"].correct[:, 0]).mean()) > 0.9
        exec(blocks[3], names)
    assert names["scores"].audits["attn.z"].spearman > 0.8
    assert "heads left on" in capsys.readouterr().out
