"""One look for every figure: the diverging colors, the fonts, the labels that every font can draw."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import matplotlib.colors
    import matplotlib.figure

INK = "#1f2328"
SOFT = "#656d76"
LINE = "#d0d7de"

# From the most negative to the most positive: dark blue, paper, dark red. Apart in lightness as well as in hue, so
# that they stay apart for color-blind readers.
DIVERGING = ("#08306b", "#2673b4", "#8fc1e3", "#f7f6f4", "#f5b294", "#d4523a", "#730d1c")
SEQUENTIAL = ("#fbfaf8", "#cfe3ea", "#7fb7cf", "#2f7ea8", "#0d4a7a", "#07264a")

_RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.usetex": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def look() -> AbstractContextManager[None]:
    """The settings under which a figure is built; the user's own are left as they are."""
    import matplotlib as mpl

    return mpl.rc_context(_RC)  # type: ignore[arg-type]


def colormap(colors: Sequence[str], name: str) -> "matplotlib.colors.Colormap":
    """A smooth map through `colors`; what is not a number is drawn in gray."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(name, list(colors), N=512).with_extremes(bad="#c9ced4")


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def drawable(label: str) -> str:
    """The label with what the font lacks written as escapes, and with `$` kept from meaning mathematics."""
    known = _glyphs()
    text = "".join(c if ord(c) in known and c.isprintable() else c.encode("unicode_escape").decode() for c in label)
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """A figure of its own, outside pyplot's list: nothing to close; notebooks show it as the last value of a cell."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="compressed")
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: "matplotlib.figure.Figure") -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
