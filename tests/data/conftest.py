"""Fixtures that the tests of feeds share."""

import pytest

from helpers.feeds import Known, make_known


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tmp_path_factory.mktemp("known"))
