"""make audit ADVISORIES=DIR: what a copy of the advisories says of a release, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT

SCRIPT = ROOT / "deploy" / "audit_offline.py"

# In place of pip-audit: asks for each release in its arguments as pip-audit does, and ends with status 7.
ASKS = """
import json, os, sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

assert os.environ["PIP_AUDIT_VULNERABILITY_SERVICE"] == "osv"
url, found = os.environ["PIP_AUDIT_OSV_URL"], {}
assert url.startswith("http://127.0.0.1:")
for release in sys.argv[1:]:
    name, _, version = release.partition("==")
    query = {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
    try:
        question = Request(url, json.dumps(query).encode(), {"Content-Type": "application/json"})
        with urlopen(question, timeout=10) as answer:
            found[release] = json.load(answer)
    except HTTPError as error:
        found[release] = error.code
print(json.dumps(found))
sys.exit(7)
"""


def store(folder: Path, name: str, about: dict[str, Any], package: str = "thing", **more: object) -> Path:
    path = folder / "vulns" / package / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    one = {"package": {"ecosystem": "PyPI", "name": package}, **about}
    path.write_text(yaml.safe_dump({"id": name, "modified": "2024-05-06T07:08:09Z", "affected": [one]} | more))
    return path


def events(*pairs: tuple[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": [{key: value} for key, value in pairs]}]}


def ask(folder: Path, *releases: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), sys.executable, "-c", ASKS, *releases],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    first, _, last = done.stdout.partition("\n")
    return json.loads(last), first


def known(answers: dict[str, Any]) -> set[str]:
    """The releases about which something is known."""
    return {release for release, answer in answers.items() if answer != {}}


@pytest.mark.parametrize(
    ("affected", "hit", "missed"),
    [
        (events(("introduced", "0"), ("fixed", "1.10")), ["0a1", "1.9", "1.10rc1"], ["1.10", "1.10.0", "2"]),
        (events(("introduced", "1.2"), ("last_affected", "1.4")), ["1.2", "1.4", "1.4.0"], ["1.1.9", "1.4.1"]),
        (events(("introduced", "3")), ["3", "99"], ["2.9"]),
        (
            events(("introduced", "3"), ("introduced", "0"), ("fixed", "3.5"), ("fixed", "2")),
            ["1", "3", "3.4"],
            ["2", "2.9", "3.5"],
        ),
        ({"versions": ["1.0", "1.2", "a2-of-old"]}, ["1", "1.0", "1.2.0"], ["1.1", "1.20"]),
        ({"versions": ["5"], **events(("introduced", "1"), ("fixed", "2"))}, ["1.5", "5"], ["2", "6"]),
        (events(("introduced", "1"), ("fixed", "2019-09-12")), ["1", "9"], ["0.9"]),  # no version: the end is open
        (events(("introduced", "r7"), ("fixed", "2")), ["0.1", "1.9"], ["2"]),
        (events(("introduced", "0"), kind="GIT"), [], ["1"]),
    ],
)
def test_a_release_is_found_as_the_schema_says(
    tmp_path: Path, affected: dict[str, Any], hit: list[str], missed: list[str]
) -> None:
    store(tmp_path, "PYSEC-1", affected)
    answers, _ = ask(tmp_path, *(f"thing=={version}" for version in (*hit, *missed)))
    assert known(answers) == {f"thing=={version}" for version in hit}
    assert {one["id"] for release in known(answers) for one in answers[release]["vulns"]} <= {"PYSEC-1"}


def test_names_are_compared_as_pip_does_and_only_of_what_holds(tmp_path: Path) -> None:
    everything = events(("introduced", "0"))
    store(tmp_path, "PYSEC-1", everything, package="Some_Thing", details="of a stranger")
    store(tmp_path, "PYSEC-2", everything, package="taken-back", withdrawn="2024-01-01T00:00:00Z")
    elsewhere = {"package": {"ecosystem": "npm", "name": "elsewhere"}, **everything}
    store(tmp_path, "PYSEC-3", everything, package="thing", affected=[elsewhere], modified="2025-02-03T00:00:00Z")
    answers, said = ask(tmp_path, "some-thing==1", "taken-back==1", "elsewhere==1", "thing==1", "some-thing==x")
    assert known(answers) == {"some-thing==1", "some-thing==x"}, answers
    (found,) = answers["some-thing==1"]["vulns"]
    assert found["details"] == "of a stranger"
    assert found["affected"][0]["package"]["name"] == "some-thing"  # as pip-audit looks for the fix
    assert answers["some-thing==x"] == 400
    assert said.startswith(f"advisories in {tmp_path}: 1, ")
    assert "2025-02-03" in said


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("<html>"),
        lambda path: path.write_text(path.read_text()[:60]),
        lambda path: path.write_text("{"),
        lambda path: path.write_text(path.read_text().replace("introduced", "limit")),
        lambda path: path.write_text(path.read_text().replace("2024-05-06", "yesterday")),
    ],
)
def test_a_record_that_cannot_be_compared_with_ends_it(tmp_path: Path, damage: Any) -> None:
    store(tmp_path, "PYSEC-1", events(("introduced", "0")), package="fine")
    path = store(tmp_path, "PYSEC-2", events(("introduced", "0"), ("fixed", "1")))
    damage(path)
    refuse(tmp_path, str(path))


def test_no_advisories_are_no_audit(tmp_path: Path) -> None:
    refuse(tmp_path, "holds no advisories")
    refuse(tmp_path / "missing", "holds no advisories")


def refuse(folder: Path, words: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), sys.executable, "-c", "print('audited')"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_a_program_that_is_missing_is_told_of(tmp_path: Path) -> None:
    store(tmp_path, "PYSEC-1", events(("introduced", "0")))
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path / "pip-audit")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "pip-audit cannot be started" in done.stderr
    assert "Traceback" not in done.stderr
