"""A made-up result of a sweep, in the form that `patching.sweep` gives; pages in a real browser."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

SITES = {"head": "attn.z", "position": "resid_pre", "role": "resid_pre", "layer": "mlp.out", "cell": "attn.z"}


@pytest.fixture
def ask_browser(tmp_path) -> Callable:
    """`ask_browser(path, script, hash)`: opens the page in Chromium, runs the script, gives the list `said` that it fills."""
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")

    def ask(path, script, hash=""):
        probed = path.with_name(f"probed_{path.name}")
        caught = f"try {{{script}}} catch (e) {{ said.push(String(e)) }} document.title = JSON.stringify(said)"
        script = f"<script>(async () => {{ const said = []; {caught} }})()</script>"
        probed.write_text(path.read_text().replace("</body>", f"{script}</body>"))
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", probed.as_uri() + hash],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))

    return ask


@pytest.fixture
def make_effects() -> Callable:
    """`make_effects(("layer", "head"), (2, 3), ...)`: normal noise with a known seed, base -2, source 3 logits."""
    import xarray as xr

    def make(
        dims,
        shape,
        *,
        metrics=None,
        by_prompt=0,
        tokens=None,
        roles=None,
        base=-2.0,
        source=3.0,
        seed=0,
        draws=0,
        interval=False,
        listed=None,
        sites=None,
        **attrs,
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
            arrays["base_by_prompt"] = ((*axes[: len(lead)], "prompt"), np.full((*lead, by_prompt), base, np.float32))
        if draws:
            null = 0.2 * random.normal(size=(draws, *effect.shape)).astype(np.float32)
            arrays["null"] = (("draw", *axes), null)
        if interval:
            arrays["low"], arrays["high"] = (axes, effect - 0.25), (axes, effect + 0.5)
        coords = {dim: np.arange(size) for dim, size in zip(dims, shape, strict=True)}
        if metrics:
            coords["metric"] = list(metrics)
        if sites:
            coords["site"] = list(sites)
            for name in ("base", "source"):  # as joining the sweeps of several sites makes them
                arrays[name] = (("site",), np.full(len(sites), arrays[name][1], np.float32))
        coords |= {name: ("cell", texts) for name, texts in (listed or {}).items()}
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
