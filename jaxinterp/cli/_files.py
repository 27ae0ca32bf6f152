"""The three files of a sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinterp import viz
from jaxinterp.store import atomic_file

if TYPE_CHECKING:
    import xarray


def check_folder(folder: Path) -> None:
    """Makes the folder and writes to it once, so that a long run does not end with an error at its end."""
    with atomic_file(folder / ".jaxinterp-writes-here") as probe:
        probe.touch()
    (folder / ".jaxinterp-writes-here").unlink(missing_ok=True)


def save_effects(
    effects: "xarray.Dataset",
    folder: Path,
    *,
    prompts: Sequence[tuple[str, str]] = (),
    title: str | None = None,
    notes: Sequence[str] = (),
    patterns: Mapping[str, Any] | None = None,
    tokens: Sequence[str] = (),
) -> list[Path]:
    """Writes effects.nc, effects.png and effects.html, each whole or not at all; returns their paths."""
    files = [folder / name for name in ("effects.nc", "effects.png", "effects.html")]
    with atomic_file(files[0]) as partial:
        effects.to_netcdf(partial, engine="h5netcdf")
    with atomic_file(files[1]) as partial:
        viz.plot(effects).savefig(partial, dpi=200)
    viz.sweep_page(effects, files[2], title=title, notes=notes, prompts=prompts, patterns=patterns, tokens=tokens)
    return files
