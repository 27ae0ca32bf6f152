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
from jaxinterp.saes import SAE


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
    sae = load_dictionary(options.dictionary, options.files, output, dtype=None)
    folder = saes.save(sae, options.out, form=options.form, dtype=options.dtype, overwrite=options.overwrite)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    source = None if sae.source is None else sae.source.form
    output.line(f"read {options.dictionary}: {dictionary_line(sae)}; made by {source or 'jaxinterp'}")
    output.line(f"wrote {folder}: form {options.form}")
    changed = _changed(sae, saes.load(folder, form=options.form, dtype=None))
    if changed:
        output.line(f"changed, since that form says it so; what it computes is the same: {'; '.join(changed)}")
    if options.form != "jaxinterp" and source not in (None, options.form):
        output.line(
            f"left out: what {'was kept of its training' if source == 'jaxinterp' else f'the files of {source} say beside'}"
        )
    for name, size in files.items():
        output.line(f"  {name}   {size:,} bytes")
    return {
        "read": {"made_by": source or "jaxinterp", "sae": saes.described(sae.config)},
        "written": {"folder": str(folder), "form": options.form, "bytes": files, "changed": changed},
    }


def _changed(old: SAE, new: SAE) -> list[str]:
    """What the written dictionary says in other words, or no longer."""
    one, two = old.config, new.config
    kinds: tuple[Any, Any] = (one.architecture, two.architecture)
    names = tuple(kind.name for kind in kinds)
    said = [f"{names[0]} became {names[1]}"] if names[0] != names[1] else []
    if one.normalize != two.normalize:
        said.append(f"the constants of normalize {one.normalize} moved into the weights, normalize is {two.normalize}")
    norms = tuple(getattr(kind, "norm_scaled", False) for kind in kinds)
    if norms == (True, False):
        said.append("the lengths of decoder rows moved into the encoder")
    if one.centers and not two.centers:
        said.append("the subtraction of the decoder's bias moved into the encoder's bias")
    if names[0] == names[1]:
        fields = [field.name for field in dataclasses.fields(kinds[0]) if field.name != "norm_scaled"]
        other = [name for name in fields if getattr(kinds[0], name) != getattr(kinds[1], name)]
        said += [f"settings of training that it has no place for: {', '.join(other)}"] if other else []
    said += [
        f"{key} {a} became {b}" for key in ("site", "target") if (a := getattr(one, key)) != (b := getattr(two, key))
    ]
    return said


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
