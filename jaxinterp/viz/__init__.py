"""Results as pictures and pages.

- `plot`: the result of a sweep as a matplotlib figure.
- `attention`: attention patterns of a few heads as a figure.
- `attention_page`: all attention patterns of a prompt as one HTML file.
- `sweep_page`: the result of a sweep as one HTML file that needs no network.
- `plot_pareto`: error against sparsity of several kinds of dictionary, as a figure.
- `latent_pages`: the latents of a dictionary as a folder of pages that needs no network.
- `plot_training`: loss, error, sparsity and dead share against the step, as a figure.
- `ranked`: the cells of a sweep by absolute effect.
"""

from jaxinterp.viz._attention import attention
from jaxinterp.viz._attention_page import attention_page
from jaxinterp.viz._latent_pages import latent_pages
from jaxinterp.viz._page import sweep_page
from jaxinterp.viz._pareto import plot_pareto
from jaxinterp.viz._plot import plot
from jaxinterp.viz._ranked import RankedCell, ranked
from jaxinterp.viz._training import plot_training

__all__ = [
    "RankedCell",
    "attention",
    "attention_page",
    "latent_pages",
    "plot",
    "plot_pareto",
    "plot_training",
    "ranked",
    "sweep_page",
]
