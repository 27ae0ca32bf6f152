"""Words of Python in messages of the library, in a shell's words."""

import re

_OPTIONS = (
    (r"(?:Posix|Windows)Path\('([^']*)'\)", r"\1"),
    (r"read_tokens\(\.\.\., field=\.\.\.\)", "--field NAME"),
    (r"as in \(\"([\w.]+)\", (\d+)\)", r"as in \1.\2"),
    (r"load\(\.\.\., scale=(.*?)\), or scale=1\.0", r"--scale (\1), or --scale 1.0"),
    (r"\boverwrite=True\b", "--overwrite"),
    (r"\bsubfolder=\.\.\.", "--subfolder FOLDER"),
    (r"\bby form=\.\.\.", "by --read-form NAME"),
    (r"\bn_ctx=(\d+)", r"--n-ctx \1"),
    (r"^scale = ", "--scale "),
    (r"^target = ", "--target "),
)


def as_options(message: str) -> str:
    """A message of the library with the command's options where it names arguments of a function.

    Example:
        >>> as_options("name the field: read_tokens(..., field=...).")
        'name the field: --field NAME.'
    """
    for pattern, words in _OPTIONS:
        message = re.sub(pattern, words, message)
    return message


def unboxed(text: str) -> str:
    r"""What stands in the boxes that the parser of options prints, in one line.

    Example:
        >>> unboxed("╭─ Unrecognized options ─╮\n│ Unknown: --bogus │\n│ ──── │\n│ For full helptext, run x --help │\n╰───╯")
        'Unknown: --bogus'
    """
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines() if not line.startswith("╭")]
    return " ".join(line for line in lines if line).partition(" For full helptext, run")[0]
