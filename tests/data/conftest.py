"""Fixtures that several tests of data/ share."""

import pytest

from helpers.archives import Here
from helpers.feeds import Known, make_known


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tmp_path_factory.mktemp("known"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes shards in this process, because starting another one costs seconds. Tests of commands use processes."""
    monkeypatch.setattr("twotower.data.preparing.shard_worker.ProcessPoolExecutor", Here)
