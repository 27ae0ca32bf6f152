"""Named intervention points: a model calls `tap(name, value)`, and handlers look at the value or change it."""

from jaxinterp.tap._aliases import hook_of_site, site_of_hook, split_site
from jaxinterp.tap._edit import edit, mean, place, project_onto, project_out, scale, zero
from jaxinterp.tap._patch import add, patch
from jaxinterp.tap._read import Statistics, capture, perturb, statistics
from jaxinterp.tap._run import SiteTable, run, sites
from jaxinterp.tap._site import Handler, Site, SiteShape
from jaxinterp.tap._tap import IDENTITY, Tap
from jaxinterp.tap._where import make_where, row_positions, select, take_rows

__all__ = [
    "IDENTITY",
    "Handler",
    "Site",
    "SiteShape",
    "SiteTable",
    "Statistics",
    "Tap",
    "add",
    "capture",
    "edit",
    "hook_of_site",
    "make_where",
    "mean",
    "patch",
    "perturb",
    "place",
    "project_onto",
    "project_out",
    "row_positions",
    "run",
    "scale",
    "select",
    "site_of_hook",
    "split_site",
    "sites",
    "statistics",
    "take_rows",
    "zero",
]
