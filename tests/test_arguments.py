"""Paths on the command line reach Hydra as they were typed, with the commas that folders of sweeps have."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from twotower.arguments import quote_paths


def values(*arguments: str) -> list[object]:
    parser = OverridesParser.create()
    return [one.value() for one in parser.parse_overrides(quote_paths(arguments, ("run", "runs")))]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    names = ["s/ablation=none,seed=0", "s/ablation=none,seed=1", "it's"]
    for name in names:
        Path(name).mkdir(parents=True)
    return names


def test_a_path_is_one_value(folders: list[str]) -> None:
    for path in (*folders, "not there,at all", "back\\slash", "end\\", "a=b"):
        assert values(f"run={path}") == [path]
    assert values("run='quoted, already'", "run=null", "other=3") == ["quoted, already", None, 3]


def test_a_list_of_paths_is_parted_where_one_ends(folders: list[str]) -> None:
    assert values(f"runs=[{','.join(folders)}]") == [folders]
    assert values("runs=[s/*,s/ablation=none,seed=1,elsewhere]") == [["s/*", folders[1], "elsewhere"]]
    assert values("runs=[s/ablation=*,seed=0, it's]") == [["s/ablation=*,seed=0", "it's"]]
    assert values("runs=[]", "runs=['x,y',z]") == [[], ["x,y", "z"]]


def test_without_this_the_path_would_be_refused() -> None:
    with pytest.raises(HydraException):
        OverridesParser.create().parse_overrides(["run=s/ablation=none,seed=0"])
