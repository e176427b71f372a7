"""For every test: what coverage need not watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worlds.untraced import look_away, untraced

look_away()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Tests that run the same lines hundreds of times; the plain tests beside them are counted."""
    if item.get_closest_marker("untraced") or getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        with untraced():
            yield
    else:
        yield
