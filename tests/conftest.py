"""Options and what all tests share."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite the expected half of file tests")


@pytest.fixture
def bless(request: pytest.FixtureRequest) -> bool:
    """Whether expected text is to be rewritten."""
    return bool(request.config.getoption("--bless"))
