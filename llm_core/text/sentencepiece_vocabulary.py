"""The vocabulary in a folder's tokenizer.model, read with the optional sentencepiece package.

Only the file is read with it: the text is split by the same backend as for GGUF's SentencePiece vocabularies.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.text.bpe_backend import TokenType, add_marks, sentencepiece_backend, sentencepiece_token_bytes
from braid.llm_core.text.model_folder import read_generation_eos_ids, read_json, read_special_tokens
from braid.llm_core.text.vocabulary import Vocabulary

BPE = 2
"""`trainer_spec.model_type`."""


def read_sentencepiece_model(folder: Path) -> Vocabulary:
    """Build a vocabulary. Raises ModelFileError (broken, or the package is missing) or UnsupportedModel."""
    path = folder / "tokenizer.model"
    model = _parse(path)
    _check_supported(path, model)
    tokens = [piece.piece for piece in model.pieces]
    types = [int(piece.type) for piece in model.pieces]
    adds_space = bool(model.normalizer_spec.add_dummy_prefix)
    backend = sentencepiece_backend(tokens, types, [piece.score for piece in model.pieces], adds_space=adds_space)
    bos, eos = _special_ids(folder, model, tokens)
    eos_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *read_generation_eos_ids(folder)]))
    marks = {i for i, kind in enumerate(types) if kind in (TokenType.CONTROL, TokenType.UNKNOWN)}
    special_ids = frozenset(marks | {i for i in eos_ids if i < len(tokens)})
    add_marks(backend, tokens, special_ids, [i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED])
    config = read_json(folder / "tokenizer_config.json")
    return Vocabulary(
        backend=backend,
        token_bytes=sentencepiece_token_bytes(tokens, types),
        special_ids=special_ids,
        bos_token_id=bos,
        eos_token_ids=eos_ids,
        prefix_ids=(bos,) if bos is not None and config.get("add_bos_token", True) else (),
        suffix_ids=(eos,) if eos is not None and config.get("add_eos_token", False) else (),
        strips_leading_space=adds_space,
    )


def _parse(path: Path) -> Any:
    try:
        sentencepiece_model_pb2 = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise ModelFileError(
            f"{path} needs the packages sentencepiece and protobuf: pip install 'braid[sentencepiece]', "
            "or put a tokenizer.json beside it"
        ) from error
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose module differs between its implementations
        raise ModelFileError(f"{path} is not a SentencePiece model: {error}") from error
    if not model.pieces:
        raise ModelFileError(f"{path} is not a SentencePiece model: it has no pieces")
    return model


def _check_supported(path: Path, model: Any) -> None:
    if model.trainer_spec.model_type != BPE:
        raise UnsupportedModel(f"{path} is not a BPE model; of SentencePiece's kinds only BPE is supported")
    if model.normalizer_spec.precompiled_charsmap or model.normalizer_spec.remove_extra_whitespaces:
        raise UnsupportedModel(
            f"{path} rewrites characters or white space before it splits (normalizer {model.normalizer_spec.name!r}); "
            "only models that keep the text as it is are supported"
        )
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UnsupportedModel(f"{path} writes spaces behind words; only spaces in front are supported")


def _special_ids(folder: Path, model: Any, tokens: list[str]) -> tuple[int | None, int | None]:
    """BOS and EOS: by the folder's JSON files or, where they say nothing, by the model itself."""
    declared = read_special_tokens(folder)
    own = {"bos_token": model.trainer_spec.bos_piece, "eos_token": model.trainer_spec.eos_piece}
    ids = {token: i for i, token in enumerate(tokens)}
    for name, token in declared.items():
        if name in own and token not in ids:
            raise ModelFileError(f"{folder}: {name}={token!r} is not a token of tokenizer.model")
    bos, eos = (ids.get(declared.get(name, token)) for name, token in own.items())
    return bos, eos
