import pytest

from jaxinterp.tap import hook_of_site, site_of_hook
from jaxinterp.tap._aliases import ALIASES


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_post", "resid_post.3"), ("blocks.0.hook_resid_pre", "resid_pre.0"),
        ("blocks.11.attn.hook_z", "attn.z.11"), ("blocks.2.hook_mlp_out", "mlp.out.2"), ("hook_embed", "embed.token"),
        ("blocks.5.mlp.hook_post", "mlp.post.5"),
    ],
)  # fmt: skip
def test_names_go_there_and_back(hook, site):
    assert site_of_hook(hook) == site
    assert hook_of_site(site) == hook


@pytest.mark.parametrize(
    "hook",
    ["blocks.3.mlp.hook_pre", "blocks.3.ln2.hook_normalized", "blocks.*.hook_resid_post", "hook_resid_post", "resid_post", "x.3",
     "blocks.3.hook_embed", "blocks.3.hook_normalized_resid_post"],
)  # fmt: skip
def test_what_is_no_site_or_depends_on_the_model(hook):
    assert site_of_hook(hook) is None


def test_every_alias_of_one_site_is_its_own_inverse():
    for alias in ALIASES:
        hook = f"blocks.7.{alias.hook}" if alias.layered else alias.hook
        site = site_of_hook(hook)
        assert site is None or hook_of_site(site) == hook
    assert hook_of_site("nothing.3") is None and hook_of_site("nothing") is None and hook_of_site("resid_post") is None
