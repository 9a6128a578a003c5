"""Small codecs with random weights."""

import pytest

from tests.export.small import small_codec


@pytest.fixture(scope="session")
def make_codec():
    return small_codec
