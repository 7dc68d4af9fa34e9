"""`braid serve` with keys, as a process: from the command line to the first answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from braid.rest.keys import new_key

CHILD = [sys.executable, str(Path(__file__).parent / "rest" / "scripted_child.py")]
SERVE = """
import sys
from braid import server
from braid.cli import main
server.child_command = lambda config: sys.argv[2:]
sys.exit(main(["serve", "--port", "0", "--api-keys", sys.argv[1]]))
"""


def test_a_served_key_is_asked_for(tmp_path: Path) -> None:
    token, key = new_key("ann")
    file = tmp_path / "keys"
    file.write_text(key.line)
    command = [sys.executable, "-c", SERVE, str(file), *CHILD]
    environment = os.environ | {"BRAID_DATA_DIR": str(tmp_path / "data")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
            assert found
            with httpx.Client(base_url=found[0], timeout=20) as client:
                assert client.get("/health").status_code == 200
                assert client.get("/v1/models").json()["error"]["code"] == "missing_api_key"
                assert client.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 200
        finally:
            server.terminate()
    assert server.returncode == 0
