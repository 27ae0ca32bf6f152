"""A made-up result of a sweep, in the form that `patching.sweep` gives."""

from collections.abc import Callable

import numpy as np
import pytest

SITES = {"head": "attn.z", "position": "resid_pre", "role": "resid_pre", "layer": "mlp.out"}


@pytest.fixture
def make_effects() -> Callable:
    """`make_effects(("layer", "head"), (2, 3), ...)`: normal noise with a known seed, base -2, source 3 logits."""
    import xarray as xr

    def make(
        dims, shape, *, metrics=None, by_prompt=0, tokens=None, roles=None, base=-2.0, source=3.0, seed=0, **attrs
    ):
        random = np.random.default_rng(seed)
        lead = (len(metrics),) if metrics else ()
        axes = (("metric",) if metrics else ()) + tuple(dims)
        effect = random.normal(size=(*lead, *shape)).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            normalized = effect / np.float32(source - base)
        arrays = {
            "effect": (axes, effect),
            "normalized": (axes, np.where(np.isfinite(normalized), normalized, np.nan)),
            "base": (axes[: len(lead)], np.full(lead, base, np.float32)),
            "source": (axes[: len(lead)], np.full(lead, source, np.float32)),
        }
        if by_prompt:
            noise = random.normal(size=(*effect.shape, by_prompt)).astype(np.float32)
            arrays["effect_by_prompt"] = ((*axes, "prompt"), effect[..., None] + 0.1 * noise)
        coords = {dim: np.arange(size) for dim, size in zip(dims, shape, strict=True)}
        if metrics:
            coords["metric"] = list(metrics)
        if roles:
            coords["role"] = list(roles)
        if tokens:
            coords["token"] = ("position", list(tokens))
        about = {"site": SITES[dims[-1]], "op": "patch", "n_prompts": 8, "model": "stories", "prepend_bos": 1}
        names = list(metrics or ["logit difference"])
        units = {"logit difference": "logits", "KL divergence": "nats"}
        about |= {"metric": ", ".join(names), "unit": ", ".join(units[name] for name in names)} | attrs
        return xr.Dataset(arrays, coords=coords, attrs=about)

    return make
