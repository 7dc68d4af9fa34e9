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


class FakeHub:
    """The three functions of `huggingface_hub` that are called, over folders of this machine.

    `files` are those of the one repository; what `snapshot_download` lets through lies in `snapshot`.
    """

    def __init__(self, snapshot: Path, files: dict[str, Path] | None = None) -> None:
        self.snapshot = snapshot
        self.files = files or {}
        self.calls: list[tuple[str, ...]] = []
        self.allowed: list[str] = []
        self.ignored: list[str] = []

    def snapshot_download(self, hub_id: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        self.calls.append(("snapshot", hub_id))
        self.allowed, self.ignored = allow_patterns, ignore_patterns
        return str(self.snapshot)

    def list_repo_files(self, hub_id: str) -> list[str]:
        self.calls.append(("list", hub_id))
        return ["README.md", *self.files]

    def hf_hub_download(self, hub_id: str, filename: str) -> str:
        self.calls.append(("file", hub_id, filename))
        if filename not in self.files:
            raise FileNotFoundError(f"404: {filename}")
        return str(self.files[filename])


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> FakeHub:
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_a_hub_id_is_downloaded_and_keeps_its_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use_hub(monkeypatch, FakeHub(models / "tiny-folder"))
    assert open_checkpoint("some-owner/Tiny-1.5B").name == "some-owner/Tiny-1.5B"
    assert hub.calls == [("snapshot", "some-owner/Tiny-1.5B")]
    assert "*.safetensors" in hub.allowed
    assert not any("bin" in pattern or "gguf" in pattern or pattern == "*" for pattern in hub.allowed)
    assert "consolidated*" in hub.ignored


def test_a_hub_repository_with_one_gguf_file_is_that_model(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")  # such repositories often have one, without safetensors
    hub = use_hub(monkeypatch, FakeHub(tmp_path, {"Tiny-Q8_0.gguf": models / "tiny.gguf"}))
    checkpoint = open_checkpoint("some-owner/Tiny-GGUF")
    assert (checkpoint.name, checkpoint.path) == ("some-owner/Tiny-GGUF", models / "tiny.gguf")
    assert hub.calls[-1] == ("file", "some-owner/Tiny-GGUF", "Tiny-Q8_0.gguf")


def test_one_of_several_gguf_files_on_the_hub_is_named_and_nothing_else_is_fetched(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = use_hub(monkeypatch, FakeHub(tmp_path, dict.fromkeys(("a.gguf", "sub/b.gguf"), models / "tiny.gguf")))
    checkpoint = open_checkpoint("some-owner/Tiny-GGUF:sub/b.gguf")
    assert (checkpoint.name, checkpoint.path) == ("some-owner/Tiny-GGUF:sub/b.gguf", models / "tiny.gguf")
    assert hub.calls == [("file", "some-owner/Tiny-GGUF", "sub/b.gguf")]
    with pytest.raises(ModelNotFound, match=r"hub failed: FileNotFoundError: 404: c\.gguf; a model is"):
        open_checkpoint("some-owner/Tiny-GGUF:c.gguf")


def test_several_gguf_files_on_the_hub_and_none_named_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = use_hub(monkeypatch, FakeHub(tmp_path, {f"q{i:02}.gguf": tmp_path for i in range(23)}))
    expected = r"has 23 GGUF files; name one, such as 'owner/Many:q00\.gguf': q00\.gguf, .*, q19\.gguf and 3 more$"
    with pytest.raises(ModelFileError, match=expected):
        open_checkpoint("owner/Many")
    assert not [call for call in hub.calls if call[0] == "file"]


def test_a_hub_repository_without_any_weights_is_told_what_a_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, FakeHub(tmp_path))
    with pytest.raises(ModelFileError, match=r"has no config\.json; a model is"):
        open_checkpoint("owner/Data")


@pytest.mark.parametrize("name", ["owner/name:file.bin", "owner/name:../x.gguf", "owner/name:/x.gguf", "owner:x.gguf"])
def test_what_names_no_gguf_file_of_a_repository_never_reaches_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFound, match="there is no model"):
        open_checkpoint(name)


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
