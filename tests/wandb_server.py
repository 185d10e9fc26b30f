"""A server that stands for W&B's on loopback: takes what W&B's own client sends, and keeps the rows of each run.

It answers no more than a client needs to send a run: it has no accounts, keeps no files, and calls every artifact
known. That the real service does the same with what it is sent, it cannot show.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service:
    """What was sent: rows by run and line, and names of artifacts."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[str] = []
        self.files: list[str] = []
        self.address = ""

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Of one GraphQL request."""
        if "upsertBucket" in query:
            run = self.runs.setdefault(given["name"], {})
            run |= {key: value for key, value in given.items() if value is not None}
            project = {"id": "UA==", "name": run.get("project"), "entity": {"id": "RQ==", "name": "team"}}
            lines = len(self.rows.get(given["name"], {}))
            bucket = {"id": "Ug==", "name": given["name"], "historyLineCount": lines, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}
        if "RunResumeStatus" in query and given["name"] in self.runs:
            lines = self.rows.get(given["name"], {})
            bucket = {
                "id": "Ug==",
                "name": given["name"],
                "historyLineCount": len(lines),
                "eventsLineCount": 0,
                "logLineCount": 0,
                "historyTail": json.dumps([json.dumps(lines[max(lines)])] if lines else []),
                "eventsTail": "[]",
                "summaryMetrics": json.dumps(self.summaries.get(given["name"], {})),
                "config": "{}",
                "wandbConfig": '{"t": 1}',
            }
            return {"model": {"id": "UA==", "name": "p", "entity": {"id": "RQ==", "name": "team"}, "bucket": bucket}}
        if "createArtifact(" in query:
            self.artifacts.append(given["input"]["artifactCollectionName"])
            artifact = {"id": "QQ==", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "QQ=="}}}
            return {"createArtifact": {"artifact": artifact}}
        if "createRunFiles" in query:
            self.files += given["files"]
            urls = [{"name": name, "uploadUrl": f"{self.address}/upload"} for name in given["files"]]
            return {"createRunFiles": {"runID": "Ug==", "uploadHeaders": [], "files": urls}}
        return {}

    def stream(self, run_id: str, files: dict[str, Any]) -> None:
        """One request of a run's file stream."""
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        rows = self.rows.setdefault(run_id, {})
        for place, line in enumerate(history["content"]):
            rows[history["offset"] + place] = json.loads(line)
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            self.summaries[run_id] = json.loads(line)


@contextmanager
def serving() -> Iterator[Service]:
    """The server, until the block ends."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                answer = {"data": service.answer(asked["query"], asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                service.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
            out = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # W&B's client leaves its connections open when it ends

    with Server(("127.0.0.1", 0), Handler) as server:
        service.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
