"""What a person may type as a model, and what they are told when it is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from braid.errors import ModelFileError, ModelNotFound
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.tests.tiny_models import write_gguf, write_hf_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_gguf(folder / "tiny.gguf", "llama")
    write_hf_folder(folder / "tiny-folder", "llama")
    (folder / "gguf-folder").mkdir()
    (folder / "gguf-folder" / "model.gguf").symlink_to(folder / "tiny.gguf")
    return folder


def test_a_gguf_file_is_named_after_itself(models: Path) -> None:
    checkpoint = open_checkpoint(models / "tiny.gguf")
    assert (checkpoint.name, checkpoint.path) == ("tiny", models / "tiny.gguf")


def test_a_folder_is_named_after_itself(models: Path) -> None:
    checkpoint = open_checkpoint(str(models / "tiny-folder"))
    assert (checkpoint.name, checkpoint.path) == ("tiny-folder", models / "tiny-folder")


def test_a_folder_with_one_gguf_file_is_that_model(models: Path) -> None:
    assert open_checkpoint(models / "gguf-folder").path.name == "model.gguf"


def test_a_folder_with_several_gguf_files_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelFileError, match=r"has no config\.json; give one of its files: a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


def test_an_empty_folder_is_told_what_a_model_is(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no config\.json; a model is 'smollm2', a GGUF file, a folder"):
        open_checkpoint(tmp_path)


def test_a_single_safetensors_file_points_to_its_folder(models: Path) -> None:
    with pytest.raises(ModelFileError, match="is one file of a model; give its folder"):
        open_checkpoint(models / "tiny-folder" / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["nothing", "", "a/b/c", "./owner/name", "~nobody-here/x", "x" * 5000, "a\0b", "owner/model.gguf", "a b/c"]
)
def test_what_is_no_model_is_not_found_and_says_what_is_accepted(name: str) -> None:
    with pytest.raises(ModelNotFound, match="a model is 'smollm2', a GGUF file, a folder") as raised:
        open_checkpoint(name)
    assert raised.value.param == "model"
    assert raised.value.status == 404


def test_a_missing_path_object_is_never_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would raise
    with pytest.raises(ModelNotFound):
        open_checkpoint(Path("owner/name"))


def test_a_hub_id_is_downloaded_and_keeps_its_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def snapshot_download(hub_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        calls.append((hub_id, allow_patterns, ignore_patterns))
        return str(models / "tiny-folder")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert open_checkpoint("some-owner/Tiny-1.5B").name == "some-owner/Tiny-1.5B"
    [(hub_id, allowed, ignored)] = calls
    assert hub_id == "some-owner/Tiny-1.5B"
    assert "*.safetensors" in allowed
    assert not any("bin" in pattern or pattern == "*" for pattern in allowed)
    assert "consolidated*" in ignored


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("name or service not known\nand a long explanation")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(ModelNotFound, match="hub failed: ConnectionError: name or service not known; a model is"):
        open_checkpoint("some-owner/some-model")


def test_opening_imports_neither_transformers_nor_the_hub(models: Path) -> None:
    code = (
        "import sys; from braid.llm_core.loading.checkpoint import open_checkpoint\n"
        f"open_checkpoint({str(models / 'tiny.gguf')!r}); open_checkpoint({str(models / 'tiny-folder')!r})\n"
        "print(*({'transformers', 'huggingface_hub', 'safetensors', 'gguf'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny-folder"])
def test_the_tokenizer_and_the_chat_template_come_with_the_checkpoint(models: Path, name: str) -> None:
    checkpoint = open_checkpoint(models / name)
    tokenizer = checkpoint.tokenizer()
    ids = tokenizer.encode("in the heat", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "in the heat"
    assert max(ids) < checkpoint.config.vocab_size
    assert checkpoint.chat_template() is not None
