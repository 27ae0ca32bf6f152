"""`jaxinterp sae convert`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxinterp import saes
from jaxinterp.cli._commands import Command
from jaxinterp.cli._options import OptionalText, OutputArgs, OutputOptions
from jaxinterp.cli._output import Output
from jaxinterp.cli._sae_options import Dictionary, FileArgs, dictionary_line, load_dictionary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Options of `jaxinterp sae convert`."""

    dictionary: Dictionary
    """A folder, or OWNER/REPOSITORY on the hub."""

    files: FileArgs

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The new folder."""

    form: str = "jaxinterp"
    """How it is written: jaxinterp, saelens, gemma_scope, dictionary_learning or sparsify."""

    dtype: OptionalText = None
    """Number format of what is written: float32, bfloat16, float16, rounded to it. (default: that of the files read)"""

    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace OUT, if it holds a dictionary and nothing else."""

    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Convert, output: Output, command: str) -> dict[str, Any]:
    """Reads, writes, and says what."""
    sae = load_dictionary(options.dictionary, options.files, dtype=None)
    folder = saes.save(sae, options.out, form=options.form, dtype=options.dtype, overwrite=options.overwrite)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    source = None if sae.source is None else sae.source.form
    output.line(f"read {options.dictionary}: {dictionary_line(sae)}; made by {source or 'jaxinterp'}")
    output.line(f"wrote {folder}: form {options.form}")
    for name, size in files.items():
        output.line(f"  {name}   {size:,} bytes")
    return {
        "read": {"made_by": source or "jaxinterp", "sae": saes.described(sae.config)},
        "written": {"folder": str(folder), "form": options.form, "bytes": files},
    }


COMMAND = Command(
    options=Convert,
    run=run,
    description="""\
Reads a dictionary of one form and writes it in another: our own, or that of SAELens, Gemma Scope, dictionary_learning or
sparsify.

Reading is strict: what a file says and is not understood is an error, if it might change the computation. What the other
form cannot hold is an error as well. Where it says the same in other words (a constant of normalization moved into the
weights, a BatchTopK written as the JumpReLU that it is in use), the numbers are those of the dictionary.

examples:
  jaxinterp sae convert sae-results/dictionary for-saelens --form saelens
  jaxinterp sae convert google/gemma-scope-2b-pt-res ours --subfolder layer_20/width_16k/average_l0_71
  jaxinterp sae convert for-saelens half --form saelens --dtype bfloat16
""",
)
