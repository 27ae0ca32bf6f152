"""The strongest cells of a sweep, for a person and for a machine."""

from typing import TYPE_CHECKING, Any

from jaxinterp import viz
from jaxinterp.cli._output import Output, number_or_none

if TYPE_CHECKING:
    import xarray


def metric_names(effects: "xarray.Dataset") -> list[str]:
    """The metrics of a sweep, in order."""
    return [str(m) for m in effects["metric"].values] if "metric" in effects.dims else [str(effects.attrs["metric"])]


def print_ranking(output: Output, effects: "xarray.Dataset", k: int) -> None:
    """One table for each metric: cell, effect, normalized effect, sign over prompts."""
    units = str(effects.attrs["unit"]).split(", ")
    for name, unit in zip(metric_names(effects), units, strict=True):
        one = effects.sel(metric=name) if "metric" in effects.dims else effects
        ends = f"base {float(one['base']):.3f}"
        if "source" in one:
            ends += f", source {float(one['source']):.3f}"
        output.heading(f"{name}, {effects.attrs['op']} {effects.attrs['site']}: {ends} {unit}")
        several = int(effects.attrs["n_prompts"]) > 1
        rows = [
            [
                str(rank), row.cell, f"{row.effect:+.3f}", f"{row.normalized:+.3f}" if "normalized" in one else "",
                *([f"{row.agreement} of {row.n_prompts}"] if several and row.agreement is not None else []),
            ]
            for rank, row in enumerate(viz.ranked(effects, k=k, metric=name), 1)
        ]  # fmt: skip
        columns = ["rank", "cell", f"effect ({unit})", "normalized", "prompts of this sign"]
        output.table(columns[: len(rows[0])] if rows else columns, rows, left=(1,))


def ranking_json(effects: "xarray.Dataset", k: int) -> list[dict[str, Any]]:
    """The same as data."""
    result = []
    for name in metric_names(effects):
        one = effects.sel(metric=name) if "metric" in effects.dims else effects
        rows = [
            {
                "cell": row.cell, **row.where, "effect": number_or_none(row.effect),
                "normalized": number_or_none(row.normalized), "prompts_of_this_sign": row.agreement,
            }
            for row in viz.ranked(effects, k=k, metric=name)
        ]  # fmt: skip
        source = number_or_none(float(one["source"])) if "source" in one else None
        result.append({"metric": name, "base": number_or_none(float(one["base"])), "source": source, "ranked": rows})
    return result
