"""Fixtures that tests of several folders share."""

import pytest
from small_runs import train


@pytest.fixture
def training(tmp_path):
    """``training(recipe, *flags, name="run", **settings)`` trains below the test's own directory."""

    def run(recipe, *flags, name="run", **settings):
        return train(recipe, tmp_path / name, *flags, **settings)

    return run
