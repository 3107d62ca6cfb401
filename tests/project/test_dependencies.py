"""Every package that the code imports is declared, each declared one is imported, and each says why it is there."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest

from helpers.paths import ROOT

# Extras that only tests import.
FOR_TESTS = ("dev", "adapters")

# Declared for the sake of others: torch.onnx and torch.utils.tensorboard import them, and Hydra finds its launcher.
NOT_IMPORTED = {"onnxscript", "tensorboard", "hydra-submitit-launcher"}

# Modules of extras that need not be installed, and whose distribution has another name.
NAMED_OTHERWISE = {"pynvml": ["nvidia-ml-py"]}


def normalise(name: str) -> str:
    """The name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_project() -> dict[str, list[str]]:
    """The requirements of pyproject.toml without those for tests alone: {"": [...], "onnx": [...], ...}."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = {name: part for name, part in project["optional-dependencies"].items() if name not in FOR_TESTS}
    return {"": project["dependencies"], **optional}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return normalise(match[0])


def list_imports(source: str) -> Iterator[str]:
    """The first name of each absolute import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def list_distributions() -> dict[str, set[str]]:
    """The distributions that have each module which src or launch imports."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    assert len(files) > 100, "the files were not found"
    modules = {name for path in files for name in list_imports(path.read_text())}
    modules -= {*sys.stdlib_module_names, "twotower"}
    known = NAMED_OTHERWISE | packages_distributions()
    return {module: {normalise(name) for name in known.get(module, [module])} for module in modules}


def test_every_import_is_declared() -> None:
    declared = {name_of(requirement) for part in read_project().values() for requirement in part}
    imported = list_distributions()
    assert {"yaml", "requests", "PIL", "torch", "hydra"} <= set(imported)
    missing = {module: names for module, names in imported.items() if not names & declared}
    assert not missing, "imported, and not declared in pyproject.toml"


def test_every_declared_package_is_imported() -> None:
    declared = {name_of(requirement) for part in read_project().values() for requirement in part}
    imported = set().union(*list_distributions().values())
    # There are two builds of DALI, of which one is installed.
    unused = {name for name in declared - imported - NOT_IMPORTED if not name.startswith("nvidia-dali-")}
    assert not unused, "declared in pyproject.toml, and imported nowhere"


def test_every_declared_package_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lines = text[text.index("dependencies = [") : text.index("\n[tool.")].splitlines()
    requirements = [line for line in lines if re.match(r'  "[\w-]+', line)]
    assert len(requirements) > 15
    assert not [line for line in requirements if not re.search(r"#\s+\w+", line)]


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import a.b, c", ["a", "c"]),
        ("def f():\n    from d.e import g", ["d"]),
        ("from . import h", []),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, modules: list[str]) -> None:
    assert list(list_imports(source)) == modules


def test_another_spelling_is_the_same_package() -> None:
    assert name_of("Hydra_Core>=1.3,<1.4; platform_system == 'Linux'") == "hydra-core"
