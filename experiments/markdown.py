"""Tables in the experiments' pages, written from the kept numbers."""

import re
from collections.abc import Mapping, Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def filled(page: str, tables: Mapping[str, str]) -> str:
    """A page with each table between the marker of its name and the next `<!-- end -->`."""
    for name, text in tables.items():
        page = re.sub(rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
    return page
