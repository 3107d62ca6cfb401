"""Paths on the command line reach Hydra as they were typed, with the commas that folders of sweeps have."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from twotower.command_line.arguments import is_path, name_first, name_paths, quote_paths, read_arguments, split_paths


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


@dataclass
class Keys:
    """Of a command."""

    run: str | None = None
    runs: list[str] | None = None
    crops: str = ""
    seed: int = 0
    network: str = ""


def test_what_has_no_key_is_a_path_by_the_rule(folders: list[str]) -> None:
    Path("seed=0").mkdir()
    Path("crop=10").mkdir()
    given = {
        "there": True,
        "not/there": True,
        "s/ablation=none,seed=0": True,
        "s/ablation=never,seed=9": True,  # mistyped, and the error names it
        "./seed=0": True,
        "seed=0": False,  # a key of the command, although there is such a folder
        "crop=10": True,  # no key, and there
        "crop=11": False,  # Hydra says that there is no such key
        "cro*=1?": True,
        "crops=ten": False,
        "network.width=0.5": False,
        "network@other=alexnet": False,
        "+seed=1": False,
        "~seed": False,
        "hydra/launcher=slurm": False,
        "hydra.verbose=true": False,
        "-m": False,
        "--cfg": False,
        "it's": True,
    }
    keys = [field.name for field in fields(Keys)]
    assert {argument: is_path(argument, keys) for argument in given} == given
    assert split_paths(["--cfg", "job", "a", "-p", "network", "seed=1", "b"], Keys) == (
        ["a", "b"],
        ["--cfg", "job", "-p", "network", "seed=1"],
    )
    assert split_paths(["s/*", "nothing/*"], Keys)[0] == [*folders[:2], "nothing/*"]


def test_paths_become_values(folders: list[str]) -> None:
    def named(*arguments: str) -> dict[str, object]:
        parsed = OverridesParser.create().parse_overrides(name_paths(arguments, Keys, "run", "runs"))
        return {one.key_or_group: one.value() for one in parsed}

    assert named(folders[0], "crops=ten") == {"run": folders[0], "crops": "ten"}
    assert named("crops=ten", *folders) == {"runs": folders, "crops": "ten"}
    assert named("s/*") == {"runs": folders[:2]}
    assert named("s/*seed=1") == {"run": folders[1]}
    assert named("run=a", "crops=ten") == {"run": "a", "crops": "ten"}
    with pytest.raises(ValueError, match=r"^a and b without a key and run=c were given; give all of them in one way"):
        named("a", "run=c", "b")
    with pytest.raises(ValueError, match=r"^2 paths were given, a, b, and this takes one; give run=PATH"):
        name_paths(["a", "b"], Keys, single="run")
    assert name_paths(["a"], Keys, several="runs") == ["runs=['a']"]
    assert name_first(["--cfg", "job", "seed=1", "figure3", "A"], Keys, "figure") == [
        *("--cfg", "job", "seed=1"),
        *("figure='figure3'", "A"),
    ]
    assert name_first(["figure=curves", "A"], Keys, "figure") == ["figure=curves", "A"]
    assert name_first(["seed=1"], Keys, "figure") == ["seed=1"]
    with pytest.raises(SystemExit, match=r"^error: no$"):
        read_arguments(refuse, ["a"])


def refuse(arguments: list[str]) -> list[str]:
    raise ValueError("no")
