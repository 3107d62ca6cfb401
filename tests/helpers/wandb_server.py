"""Answers `wandb sync` on this machine in place of W&B's server, to see what would arrive there.

It answers as far as this takes: runs are made and resumed, histories and summaries come in; files are taken and
forgotten, and everything else, such as artifacts, is refused.
"""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DEADLINE = 60  # seconds; far more than it takes


@dataclass
class SentRun:
    """A run as the server keeps it: the last summary replaces the others."""

    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


class Server(ThreadingHTTPServer):
    """The server's state: `runs` by their ids."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, SentRun] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def sync(self, folders: Sequence[Path], home: Path) -> None:
        """Sends offline runs to this server, with `home` as the folder of W&B's own files."""
        places = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "CACHE", "DATA")}
        key = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40, "WANDB_ERROR_REPORTING": "false"}
        command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
        environment = {**os.environ, **places, **key}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE, cwd=home)
        assert done.returncode == 0, done.stdout + done.stderr

    def upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(asked["name"], SentRun())
        run.about |= {key: value for key, value in asked.items() if value is not None}
        run.config |= json.loads(asked.get("config") or "{}")
        project = {"id": "p", "name": asked["project"], "entity": {"id": "e", "name": asked.get("entity") or "me"}}
        bucket = {"id": f"id-{asked['name']}", "name": asked["name"], "displayName": run.about.get("displayName")}
        bucket |= {"historyLineCount": len(run.history), "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        run, bucket = self.runs.get(asked["name"]), None
        if run is not None:
            lines = {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
            tails = {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]"}
            texts = {"summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config)}
            name = {"id": f"id-{asked['name']}", "name": asked["name"], "wandbConfig": '{"t": 1}'}
            bucket = {**name, **lines, **tails, **texts}
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def take(self, name: str, sent: dict[str, Any]) -> None:
        """A piece of a run's stream."""
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            rows = [json.loads(line) for line in chunk["content"]] if file.startswith("wandb-") else []
            if file == "wandb-history.jsonl":
                run.history[chunk["offset"] : chunk["offset"] + len(rows)] = rows
            elif file == "wandb-summary.json":
                run.summary = rows[-1]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""

    def _body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        sent = json.loads(self._body())
        if self.path.startswith("/files/"):  # /files/ENTITY/PROJECT/RUN/file_stream
            self.server.take(self.path.split("/")[4], sent)
            self._answer({})
            return
        name, asked = sent["operationName"], sent.get("variables") or {}
        if name == "UpsertBucket":
            data = self.server.upsert(asked)
        elif name == "RunResumeStatus":
            data = self.server.resume(asked)
        elif name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server.url}/put"} for file in asked["files"]]
            data = {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        else:
            self._answer({"errors": [{"message": f"{name} is not known here"}]})
            return
        self._answer({"data": data})


@contextmanager
def serve() -> Iterator[Server]:
    """A server without runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
