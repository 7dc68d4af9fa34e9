"""The vocabulary in a Hugging Face folder: tokenizer.json, with what the JSON files beside it add."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.text.model_folder import read_generation_eos_ids, read_special_tokens
from braid.llm_core.text.sentencepiece_vocabulary import read_sentencepiece_model
from braid.llm_core.text.vocabulary import SPIECE_SPACE, Vocabulary, byte_level_bytes, sentencepiece_bytes


def read_folder_vocabulary(folder: Path) -> Vocabulary:
    """Build a vocabulary. Raises ModelFileError (broken or missing files) or UnsupportedModel (sound, but not ours)."""
    if (folder / "tokenizer.json").is_file():
        return _read_tokenizer_json(folder)
    if (folder / "tokenizer.model").is_file():
        return read_sentencepiece_model(folder)
    raise ModelFileError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model")


def _read_tokenizer_json(folder: Path) -> Vocabulary:
    backend = _backend(folder / "tokenizer.json")
    added = backend.get_added_tokens_decoder()
    special_tokens = read_special_tokens(folder)
    bos = _special_id(folder, backend, special_tokens, "bos_token")
    eos = _special_id(folder, backend, special_tokens, "eos_token")
    eos_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *read_generation_eos_ids(folder)]))
    special_ids = {i for i, token in added.items() if token.special} | set(eos_ids) | ({bos} - {None})
    prefix, suffix = _added_around(backend)
    decoder = _Decoder(folder, backend)
    return Vocabulary(
        backend=backend,
        token_bytes=_token_bytes(backend, decoder, special_ids),
        special_ids=frozenset(i for i in special_ids if i is not None),
        bos_token_id=bos,
        eos_token_ids=eos_ids,
        prefix_ids=prefix,
        suffix_ids=suffix,
        strips_leading_space=decoder.strips_leading_space,
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more exact
        raise ModelFileError(f"{path} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


class _Decoder:
    """How tokens spell bytes, read off the steps of the file's own decoder."""

    def __init__(self, folder: Path, backend: tokenizers.Tokenizer) -> None:
        steps = _steps(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else []
        by_type = {step["type"]: step for step in steps}
        self.is_byte_level = "ByteLevel" in by_type
        metaspace = by_type.get("Metaspace")
        if not (self.is_byte_level or metaspace or "ByteFallback" in by_type):
            raise UnsupportedModel(
                f"{folder}/tokenizer.json decodes with {list(by_type) or 'nothing'}; supported are byte-level BPE "
                "(ByteLevel) and SentencePiece (ByteFallback or Metaspace)"
            )
        strips = by_type.get("Strip", {}).get("start", 0) > 0
        self.strips_leading_space = strips or bool(metaspace and metaspace["prepend_scheme"] != "never")

    def token_bytes(self, text: str) -> bytes:
        return byte_level_bytes(text) if self.is_byte_level else sentencepiece_bytes(text)

    def added_token_bytes(self, text: str) -> bytes:
        return (text if self.is_byte_level else text.replace(SPIECE_SPACE, " ")).encode()


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for part in decoder["decoders"] for step in _steps(part)] if "decoders" in decoder else [decoder]


def _token_bytes(backend: tokenizers.Tokenizer, decoder: _Decoder, special_ids: set[int | None]) -> tuple[bytes, ...]:
    vocab = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    table = [b""] * (max([*vocab.values(), *added], default=-1) + 1)
    for token, i in vocab.items():
        if i in special_ids:
            table[i] = token.encode()
        else:
            table[i] = decoder.added_token_bytes(token) if i in added else decoder.token_bytes(token)
    return tuple(table)


def _special_id(
    folder: Path, backend: tokenizers.Tokenizer, special_tokens: dict[str, str], name: str
) -> int | None:
    if name not in special_tokens:
        return None
    token_id: int | None = backend.token_to_id(special_tokens[name])
    if token_id is None:
        raise ModelFileError(f"{folder}: {name}={special_tokens[name]!r} is not a token of tokenizer.json")
    return token_id


def _added_around(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor puts before and behind a text. It alone decides, as in `transformers`: beside a
    tokenizer.json, `add_bos_token` in tokenizer_config.json says nothing."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    start = next(at for at in range(len(whole) + 1) if whole[at : at + len(plain)] == plain)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])
