"""Small codecs and sounds to play through them."""

import pytest

from tests.export.small import small_codec


@pytest.fixture(scope="session")
def make_codec():
    return small_codec
