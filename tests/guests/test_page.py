"""The Python of `docs/guests.md` runs as it stands, in the order of the page."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guests.md"


def test_the_python_of_the_page_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert names["effects"].effect.shape == (2, 4)
    assert "attn.pattern" in capsys.readouterr().out
