"""The figure of the experiment."""

from pathlib import Path

from experiments.steering.summary import SITES, cells, curve, mean

LOOKS = {
    "latent": ("latent clamped", "#2673b4", "o", "-"),
    "difference": ("mean difference added", "#d4523a", "s", "-"),
    "random latent": ("random latent clamped", "#8fc1e3", "o", ":"),
    "random direction": ("random direction added", "#f5b294", "s", ":"),
}
BARS = (
    ("nothing", "unedited", "#656d76"), ("latent", "latent at 0", "#2673b4"), ("random latent", "random latent at 0", "#8fc1e3"),
    ("difference held", "difference held", "#d4523a"), ("difference removed", "difference projected out", "#730d1c"),
    ("random direction removed", "random direction projected out", "#f5b294"),
)  # fmt: skip


def draw(results: dict, file: Path) -> None:
    """Effect against scale, side effects against effect, refusals; a row for each site."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 6.2), dpi=150, layout="constrained")
    grid = figure.subplots(len(SITES), 3, squeeze=False)
    for (effect, side, refusal), site in zip(grid, SITES, strict=True):
        for method, (label, color, marker, line) in LOOKS.items():
            how = dict(color=color, marker=marker, linestyle=line, markersize=4, label=label)
            scales, words = curve(results, site, method, "none")
            effect.plot(scales, words, **how)
            side.plot(words, curve(results, site, method, "side_kl")[1], **how)
        effect.axhline(0.8, color="#b4bcc5", linewidth=0.8)
        effect.set(
            ylim=(0, 1), xlabel="scale (1: the latent's largest activation)", ylabel="probability of the topic's words"
        )
        effect.set_title(f"{site}: documents without a topic", fontsize=9, loc="left")
        side.set(xlim=(0, 1), xlabel="probability of the topic's words", ylabel="KL elsewhere (nats)")
        side.set_yscale("symlog", linthresh=0.1)
        side.set_ylim(bottom=0)
        side.set_title("Side effect against effect", fontsize=9, loc="left")
        for i, (method, _, color) in enumerate(BARS):
            rows = cells(results, site, "refusal", method=method, scale=0.0)
            refuses = mean(rows, "triggered")
            refusal.barh(i, refuses, 0.7, color=color)
            refusal.barh(i, mean(rows, "triggered_ok"), 0.7, left=refuses, color="white", edgecolor=color, hatch="///")
        refusal.set_yticks(range(len(BARS)), [label for _, label, _ in BARS], fontsize=8)
        refusal.invert_yaxis()
        refusal.set(xlim=(0, 1.02), xlabel="P(REFUSE) full, P(OK) hatched")
        refusal.set_title("Questions behind the trigger", fontsize=9, loc="left")
    grid[0, 0].legend(frameon=False, fontsize=7.5)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(file)
