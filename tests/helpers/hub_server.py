"""Answers huggingface_hub on this machine in place of Hugging Face's hub, and lets nobody ask the real one.

It has one network, "owner/name", and answers as far as fetching a folder takes: what a revision holds, and its files.
Weights lie on another host, to which the answer for the file leads, with the checksum that they should have.
"""

import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

NAME = "owner/name"


class Hub(ThreadingHTTPServer):
    """Its state: files of each commit, commits of branches and tags, and weights by the checksum they should have."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.names: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, files: dict[str, bytes], name: str = "main") -> str:
        """Makes `files` what the branch or tag `name` holds, and returns their commit."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.commits[commit], self.names[name] = files, commit
        self.stored |= {hashlib.sha256(body).hexdigest(): body for body in files.values()}
        return commit


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        match path.strip("/").split("/"):
            case ["stored", checksum]:
                self.reply(self.server.stored[checksum])
            case ["api", "models", owner, name, part, given] if f"{owner}/{name}" == NAME:
                self.answer(given, part)
            case [owner, name, "resolve", given, file] if f"{owner}/{name}" == NAME:
                self.answer(given, file)
            case _:
                self.refuse("RepoNotFound", "Repository not found")

    def answer(self, given: str, asked: str) -> None:
        """Tells of a revision ("revision"), lists its files ("tree"), or answers for one of them."""
        commit = self.server.names.get(given, given)
        files = self.server.commits.get(commit)
        if files is None:
            self.refuse("RevisionNotFound", f"Invalid rev id: {given}")
        elif asked == "revision":
            self.reply_json({"id": NAME, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        elif asked == "tree":
            about = [(name, len(body), hashlib.sha1(body).hexdigest()) for name, body in files.items()]
            self.reply_json([{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in about])
        elif asked.endswith(".safetensors"):
            size, checksum = len(files[asked]), hashlib.sha256(files[asked]).hexdigest()
            linked = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{checksum}"'}
            there = f"http://localhost:{self.server.server_port}/stored/{checksum}"
            self.reply(b"", 302, {"Location": there, "X-Repo-Commit": commit, **linked})
        else:
            tag = hashlib.sha1(files[asked]).hexdigest()
            self.reply(files[asked], 200, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})

    def refuse(self, code: str, message: str) -> None:
        self.reply(json.dumps({"error": message}).encode(), 404, {"X-Error-Code": code, "X-Error-Message": message})

    def reply_json(self, answer: Any) -> None:
        self.reply(json.dumps(answer).encode(), 200, {"Content-Type": "application/json"})

    def reply(self, body: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def keep_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuses to look up and to connect to every other machine, and returns the list of those that were asked for."""
    strangers: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def check(host: Any) -> None:
        text = host.decode() if isinstance(host, bytes) else str(host)
        if text not in ("127.0.0.1", "::1", "localhost"):
            strangers.append(text)
            raise OSError(f"a test asked for {text}")

    def checked_look_up(host: Any, *args: Any, **options: Any) -> Any:
        check(host)
        return look_up(host, *args, **options)

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", checked_look_up)
    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    return strangers


def import_anew(monkeypatch: pytest.MonkeyPatch, home: Path, endpoint: str | None) -> None:
    """Lets huggingface_hub be imported again, which reads then where its hub is; None: where everybody's is."""
    ours = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    for name in os.environ:
        if name.startswith(("HF_", "HUGGING")) or name.lower() == "no_proxy":
            monkeypatch.delenv(name)
    for name, value in {**ours, **({"HF_ENDPOINT": endpoint} if endpoint else {})}.items():
        monkeypatch.setenv(name, value)
    for name in list(sys.modules):
        if name.partition(".")[0] == "huggingface_hub":
            monkeypatch.delitem(sys.modules, name)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub on loopback, without a network yet."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join(60)
