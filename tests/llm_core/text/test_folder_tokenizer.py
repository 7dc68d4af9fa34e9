"""Tokenizers of Hugging Face folders: tokenizer.json against `transformers`, tokenizer.model against SentencePiece."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.text.detokenizer import IncrementalDetokenizer
from braid.llm_core.text.tokenizer import Tokenizer, from_folder, from_gguf

sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = (
    "The quick brown fox jumps over the lazy dog. A small ship sails a wide sea; the sea is wide, the ship is small.\n"
    "def main():\n    return [x for x in range(10)]\n\n漢字とかな 한글 텍스트 привет мир naïve café\n"
)
TEXT = st.text(st.sampled_from("abehisto  \n\t.漢かé🙂<>/ж▁"), max_size=40) | st.sampled_from(CORPUS.splitlines())


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    train(folder, model_type="bpe")
    return folder


def train(folder: Path, **options: Any) -> None:
    """A small model of the kind that Llama 2, Mistral and Gemma use."""
    (folder / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    defaults: dict[str, Any] = {
        "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=420, minloglevel=2,
        hard_vocab_limit=False, user_defined_symbols=["<tool>"], **(defaults | options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def llama2(sentencepiece_folder: Path) -> Tokenizer:
    return from_folder(sentencepiece_folder)


@pytest.fixture(scope="module")
def processor(sentencepiece_folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))


@settings(deadline=None, max_examples=500)
@given(text=TEXT)
def test_random_text_gets_the_ids_that_sentencepiece_gives(llama2: Tokenizer, processor: Any, text: str) -> None:
    ids = llama2.encode(text, add_special_tokens=False, parse_special=False)
    assert ids == processor.encode(text)
    assert llama2.decode(ids, skip_special_tokens=True) == processor.decode(ids)


@settings(deadline=None, max_examples=500)
@given(data=st.data(), cut=st.integers(0, 20), skip=st.booleans())
def test_random_ids_come_out_of_the_detokenizer_as_decode_gives_them(
    llama2: Tokenizer, data: st.DataObject, cut: int, skip: bool
) -> None:
    ids = data.draw(st.lists(st.integers(0, llama2.vocab_size - 1), max_size=20))
    detokenizer = IncrementalDetokenizer(llama2, ids[:cut], skip_special_tokens=skip)
    completion = "".join(detokenizer.push(i) for i in ids[cut:]) + detokenizer.flush()
    whole = llama2.decode(ids, skip_special_tokens=skip)
    prompt = llama2.decode(ids[:cut], skip_special_tokens=skip)
    if not prompt.endswith("\ufffd"):
        assert prompt + completion == whole
    assert whole.endswith(completion)


def test_only_the_first_space_of_a_whole_text_is_taken_away(llama2: Tokenizer) -> None:
    ids = llama2.encode("the sea", add_special_tokens=False)
    assert llama2.token_bytes(ids[0]).startswith(b" ")
    assert llama2.decode(ids, skip_special_tokens=True) == "the sea"
    after_bos = IncrementalDetokenizer(llama2, [1], skip_special_tokens=True)
    assert "".join(after_bos.push(i) for i in ids) == "the sea"
    after_text = IncrementalDetokenizer(llama2, [1, *ids], skip_special_tokens=True)
    assert "".join(after_text.push(i) for i in ids) == " the sea"


def test_sentencepiece_tokens_have_exact_bytes(llama2: Tokenizer, processor: Any) -> None:
    assert llama2.token_bytes(processor.piece_to_id("<0x0A>")) == b"\n"
    assert llama2.token_bytes(processor.piece_to_id("▁the")) == b" the"
    assert llama2.token_bytes(processor.piece_to_id("</s>")) == b"</s>"
    assert llama2.special_ids == {0, 1, 2}
    assert (llama2.bos_token_id, llama2.eos_token_ids, llama2.adds_bos) == (1, (2,), True)


def test_gguf_scores_make_the_same_tokenizer(llama2: Tokenizer, processor: Any) -> None:
    ids = range(processor.get_piece_size())
    kinds = [(processor.is_control, 3), (processor.is_unknown, 2), (processor.is_byte, 6)]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [next((kind for is_kind, kind in kinds if is_kind(i)), 1) for i in ids],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = from_gguf(metadata)
    assert tokenizer.encode(CORPUS, add_special_tokens=True) == llama2.encode(CORPUS, add_special_tokens=True)
    assert tokenizer.decode(tokenizer.encode(CORPUS, add_special_tokens=True), skip_special_tokens=True) == CORPUS
    bare = from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert bare.token_bytes(bare.encode("the", add_special_tokens=True)[0])[:1] == b"t"
    assert bare.decode(bare.encode(" the", add_special_tokens=True), skip_special_tokens=True) == " the"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "is not a BPE model"),
        ({"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"}, "normalizer 'nmt_nfkc'"),
        ({"model_type": "bpe", "remove_extra_whitespaces": True}, "rewrites characters or white space"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "spaces behind words"),
    ],
)
def test_other_sentencepiece_models_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    train(tmp_path, **options)
    with pytest.raises(UnsupportedModel, match=message):
        from_folder(tmp_path)


def test_a_missing_sentencepiece_package_is_named(
    sentencepiece_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(ModelFileError, match=r"needs the packages sentencepiece and protobuf: pip install"):
        from_folder(sentencepiece_folder)


def byte_level() -> Backend:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "Ġt", "he", "Ġthe", "12"]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2")]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>", "<end>"])
    backend.add_tokens([AddedToken("<tool é>", special=False, normalized=False)])
    return backend


def legacy_llama() -> Backend:
    tokens = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "he", "▁t"]
    backend = Backend(
        models.BPE(
            {token: i for i, token in enumerate([*tokens, "▁the"])}, [("h", "e"), ("▁", "t"), ("▁t", "he")],
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    return backend


def save(folder: Path, backend: Backend | str, **files: Any) -> Path:
    (folder / "tokenizer.json").write_text(backend if isinstance(backend, str) else backend.to_str(), encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}


@pytest.mark.parametrize("backend", [byte_level(), legacy_llama()], ids=["byte_level", "sentencepiece"])
@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>"])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("text", ["the 12 thé", " the  the\n漢", "<bos>the<eos> the", ""])
def test_a_folder_reads_as_in_transformers(
    tmp_path: Path, backend: Backend, single: str, flags: dict[str, bool], text: str
) -> None:
    marks = [(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
    save(tmp_path, backend, tokenizer_config=CONFIG | flags)
    reference, tokenizer = AutoTokenizer.from_pretrained(tmp_path), from_folder(tmp_path)
    for add in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=add)
        assert ids == reference.encode(text, add_special_tokens=add)
        for skip in (False, True):
            expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
    assert tokenizer.adds_bos == ("<bos>" in single)


def test_added_tokens_are_text_as_they_are_written(tmp_path: Path) -> None:
    tokenizer = from_folder(save(tmp_path, byte_level()))
    (tool,) = tokenizer.encode("<tool é>", add_special_tokens=False)
    assert tokenizer.token_bytes(tool) == "<tool é>".encode()
    assert tokenizer.vocab_size == tool + 1


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    tokenizer = from_folder(save(tmp_path, backend))
    assert len(tokenizer.encode("a", add_special_tokens=True)) == 1
    assert len(tokenizer.encode("abcdef", add_special_tokens=True)) == 6


def test_generation_config_adds_ends(tmp_path: Path) -> None:
    backend = byte_level()
    eos, end = backend.token_to_id("<eos>"), backend.token_to_id("<end>")
    save(tmp_path, backend, tokenizer_config=CONFIG, generation_config={"eos_token_id": [end, eos]})
    tokenizer = from_folder(tmp_path)
    assert tokenizer.eos_token_ids == (eos, end)
    save(tmp_path, backend, tokenizer_config={}, generation_config={}, config={"eos_token_id": end})
    assert from_folder(tmp_path).eos_token_ids == (end,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"bos_token": "<nope>"}}, "bos_token='<nope>' is not a token"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token=5 must be a string"),
        ({"generation_config": {"eos_token_id": "x"}}, "eos_token_id='x' must be a token id"),
        ({"generation_config": {"eos_token_id": [1, -1]}}, "must be a token id or an array"),
        ({"special_tokens_map": [1]}, "must hold a JSON object, not list"),
    ],
)
def test_broken_files_beside_the_tokenizer_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_folder(save(tmp_path, byte_level(), **files))


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}', "\x00"])
def test_a_broken_tokenizer_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is not a tokenizer"):
        from_folder(save(tmp_path, content))


def test_a_folder_without_a_tokenizer_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff not protobuf")
    with pytest.raises(ModelFileError, match=r"tokenizer\.model is not a SentencePiece model"):
        from_folder(tmp_path)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    backend = byte_level()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModel, match=r"decodes with \['WordPiece'\]; supported are byte-level BPE"):
        from_folder(save(tmp_path, backend))
