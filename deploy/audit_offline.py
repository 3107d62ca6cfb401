"""Lets pip-audit compare with a copy of the Python Packaging Advisory Database, where nothing outside can be asked.

    git clone --depth 1 https://github.com/pypa/advisory-database
    make audit ADVISORIES=advisory-database

which is `python deploy/audit_offline.py DIR pip-audit ARGUMENTS`. The records of the copy are in OSV's form.
pip-audit asks a service for those of one release at a time, so this is such a service for as long as pip-audit runs:
on loopback, with the answers that OSV's own would give from these records. The exit status is that of pip-audit.
"""

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

SOURCE = "https://github.com/pypa/advisory-database"
LOWEST = Version("0.dev0")  # OSV writes "0" for what comes before all releases
LONGEST = 100_000  # bytes of a question; pip-audit's are about 100


class Advisories(NamedTuple):
    """The records that hold, by the normalised names of the packages they are about, and the day of the newest."""

    by_package: dict[str, list[dict[str, Any]]]
    newest: date

    def find(self, name: str, version: Version) -> list[dict[str, Any]]:
        """The records that are about a release of a package."""
        name = canonicalize_name(name)
        return [record for record in self.by_package.get(name, []) if _is_about(record, name, version)]


def read_advisories(folder: Path) -> Advisories:
    """Reads all records of a copy, without those that were withdrawn.

    Raises: ValueError if there is none, or one cannot be compared with, as an audit may not pass over it.
    """
    by_package, days = defaultdict(list), []
    for path in sorted(folder.glob("vulns/*/*.yaml")):
        try:
            # As text: a version 1.10 is no number, and dates go on as they are.
            record = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
            days.append(date.fromisoformat(record["modified"][:10]))
            if "withdrawn" in record:
                continue
            record["affected"] = [one for one in record["affected"] if one["package"]["ecosystem"] == "PyPI"]
            for affected in record["affected"]:
                affected["package"]["name"] = canonicalize_name(affected["package"]["name"])
                _keep_comparable(affected)
            for name in {affected["package"]["name"] for affected in record["affected"]}:
                by_package[name].append({"id": record["id"], **record})
        except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no record that can be compared with ({error!r}); fetch {SOURCE} again."
            ) from error
    if not by_package:
        raise ValueError(f"{folder} holds no advisories: a copy of {SOURCE} has them in vulns/PACKAGE/NAME.yaml.")
    return Advisories(dict(by_package), max(days))


def _keep_comparable(affected: dict[str, Any]) -> None:
    """Leaves the ranges of releases, with the bounds that are versions. Ranges of commits go: no release is in these.

    A bound that is no version (the database has two) may not let a release pass, so that side of its range is open.
    """
    ranges = [one for one in affected.get("ranges", []) if one["type"] == "ECOSYSTEM"]
    for one in ranges:
        if unknown := {kind for event in one["events"] for kind in event} - {"introduced", "fixed", "last_affected"}:
            raise ValueError(f"an event {unknown.pop()!r}")
        one["events"] = [event for event in one["events"] if all(_read_version(text) for text in event.values())]
        if not any("introduced" in event for event in one["events"]):
            one["events"].append({"introduced": "0"})
    affected["ranges"] = ranges


def _is_about(record: dict[str, Any], name: str, version: Version) -> bool:
    return any(
        affected["package"]["name"] == name
        and (
            any(_read_version(text) == version for text in affected.get("versions", []))
            or any(_is_within(one["events"], version) for one in affected["ranges"])
        )
        for affected in record["affected"]
    )


def _is_within(events: list[dict[str, str]], version: Version) -> bool:
    """As the OSV schema evaluates a range: its events in the order of their versions, each changing what holds."""
    within = False
    for bound, kind in sorted((_bound(text), kind) for event in events for kind, text in event.items()):
        if kind == "introduced" and bound <= version:
            within = True
        elif (kind == "fixed" and bound <= version) or (kind == "last_affected" and bound < version):
            within = False
    return within


def _bound(text: str) -> Version:
    return LOWEST if text == "0" else Version(text)


def _read_version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:  # from before PEP 440: no release that pip installs today is one
        return None


class Service(ThreadingHTTPServer):
    """Answers on loopback as OSV's API does: a query for a release with the records that are about it."""

    daemon_threads = True

    def __init__(self, advisories: Advisories) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.advisories = advisories


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        try:
            query = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), LONGEST)))
            found = self.server.advisories.find(query["package"]["name"], Version(query["version"]))
        except (KeyError, TypeError, ValueError):
            self.send_error(400)
            return
        body = json.dumps({"vulns": found} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> int:
    if len(sys.argv) < 3:
        print(
            f"usage: python deploy/audit_offline.py DIR pip-audit ..., with a copy of {SOURCE} in DIR",
            file=sys.stderr,
        )
        return 2
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    try:
        advisories = read_advisories(folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    known = {record["id"] for records in advisories.by_package.values() for record in records}
    print(f"advisories in {folder}: {len(known):,}, the newest of {advisories.newest}; later finds are not in them")
    with Service(advisories) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        where = {
            "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
            "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{service.server_port}",
        }
        try:
            return subprocess.run(command, env={**os.environ, **where}, check=False).returncode
        except OSError as error:
            print(f"{command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
            return 2
        finally:
            service.shutdown()


if __name__ == "__main__":
    sys.exit(main())
