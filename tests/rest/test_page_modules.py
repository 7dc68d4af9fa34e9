"""Runs the unit tests of the page's modules: `tests/rest/page/*.test.mjs`, with Node's own test runner."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "page").glob("*.test.mjs"))
NEEDED = (20, 19)
"""The first that takes a .js file with imports for a module."""


@pytest.fixture(scope="module")
def node() -> str:
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not installed")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in version.lstrip("v").split(".")[:2]) < NEEDED:
        pytest.skip(f"node {version} is older than {'.'.join(map(str, NEEDED))}")
    return path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_a_module_does_what_its_tests_say(node: str, file: Path) -> None:
    run = subprocess.run([node, "--no-warnings", "--test", str(file)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_are_tests_to_run() -> None:
    assert len(FILES) >= 5
