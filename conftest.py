"""For `make doctest`: examples that read the data folder beside the project skip where it is absent."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks doctests that name `../shared/data`."""
    if (Path(__file__).parent.parent / "shared" / "data").is_dir():
        return
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.dtest and "../shared/data" in item.dtest.docstring:
            item.add_marker(pytest.mark.skip(reason="reads ../shared/data, which is absent"))
