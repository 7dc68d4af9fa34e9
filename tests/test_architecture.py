"""The tree is what the documents say: packages, the direction of imports, names that mean something."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_PACKAGED = {"tests", "benchmarks", "examples", "docs", "build"}
LAYERS = {
    "errors": set(),
    "config": {"errors"},
    "kernels": {"errors"},
    "tracing": {"errors"},
    "llm_core": {"errors", "kernels", "tracing"},
    "multimodal": {"errors", "kernels", "tracing", "llm_core"},
    "lora": {"errors", "kernels", "tracing", "llm_core"},
    "diffusion": {"errors", "kernels", "tracing", "llm_core", "multimodal", "lora"},
    "training": {"errors", "kernels", "llm_core", "multimodal", "lora", "diffusion"},
    "rest": {"errors", "config", "kernels", "tracing", "llm_core", "multimodal", "lora", "diffusion"},
}
"""What each part may import beside itself; root files may import everything."""


def python_files() -> list[Path]:
    return [
        path
        for path in ROOT.rglob("*.py")
        if not any(part.startswith(".") or part in NOT_PACKAGED for part in path.relative_to(ROOT).parts)
    ]


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def braid_imports(path: Path) -> set[str]:
    """The parts of braid that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("braid.")}


@pytest.mark.parametrize("part", sorted(LAYERS))
def test_imports_point_one_way(part: str) -> None:
    allowed = LAYERS[part] | {part}
    for path in python_files():
        if part_of(path) == part:
            assert braid_imports(path) <= allowed, path


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in python_files()}
    assert listed == {".".join(("braid", *folder.parts)) for folder in folders}


def test_every_file_of_the_pages_goes_into_a_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["braid.rest"]
    packed = {path for pattern in patterns for path in (ROOT / "rest").glob(pattern) if path.is_file()}
    there = {path for folder in ("page", "timeline_page") for path in (ROOT / "rest" / folder).rglob("*")}
    assert packed == {path for path in there if path.is_file()}


def test_all_imports_of_ours_are_absolute() -> None:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_no_file_is_named_after_no_idea() -> None:
    vague = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
    assert not [path for path in python_files() if path.name in vague]


def test_the_typing_link_leads_to_the_root() -> None:
    assert (ROOT / ".typing" / "braid").resolve() == ROOT


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


HTTP_SIDE = ("import braid", "import braid.rest.app", "import braid.server", "import braid.cli")


@pytest.mark.parametrize("statement", HTTP_SIDE)
def test_the_http_side_imports_no_torch(statement: str) -> None:
    assert not {"torch", "transformers", "diffusers", "numpy"} & modules_after(statement)


def test_the_engine_side_does_not_import_transformers() -> None:
    assert not {"transformers", "diffusers"} & modules_after("import braid.factory")
