"""`braid serve` with keys, as a process: from the command line to the first answer."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from braid.diffusion.jobs.records import NewJob
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.rest.keys import new_key
from braid.rest.webhook_secret import VARIABLE, WebhookSecret

CHILD = [sys.executable, str(Path(__file__).parent / "rest" / "scripted_child.py")]
SERVE = """
import sys
from braid import server
from braid.cli import main
server.child_command = lambda config: CHILD
sys.exit(main(["serve", "--port", "0", *sys.argv[1:]]))
"""


@contextmanager
def served(folder: Path, *options: str, **environment: str) -> Iterator[httpx.Client]:
    """A server that keeps its jobs in a folder; its engine is a script."""
    command = [sys.executable, "-c", SERVE.replace("CHILD", repr(CHILD)), *options]
    environment = dict(os.environ) | {"BRAID_DATA_DIR": str(folder)} | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
            assert found
            with httpx.Client(base_url=found[0], timeout=20) as client:
                yield client
        finally:
            server.terminate()
    assert server.returncode == 0


def test_a_served_key_is_asked_for(tmp_path: Path) -> None:
    token, key = new_key("ann")
    file = tmp_path / "keys"
    file.write_text(key.line)
    with served(tmp_path / "data", "--api-keys", str(file)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").json()["error"]["code"] == "missing_api_key"
        assert client.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_a_server_with_a_secret_tells_the_ends_of_jobs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.settimeout(20)
        told = ended_job(tmp_path, f"http://localhost:{receiver.getsockname()[1]}/hook")
        secret = {VARIABLE: WebhookSecret.new().text}
        with served(tmp_path, "--video", "film.safetensors", "--trusted-host", "localhost", **secret):
            connection, _ = receiver.accept()
            with connection:
                message = connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert b"webhook-signature: v1," in message.lower() and f"evt_{told}".encode() in message


def ended_job(folder: Path, webhook_url: str) -> str:
    """The end of a job that an earlier server has not told."""
    storage = JobStorage.open(folder, seat="http")
    store = JobStore(storage)
    job_id = store.cancel(store.create(NewJob(kind="video", params={}, facts={"webhook_url": webhook_url})).job.id).id
    storage.close()
    return job_id
