"""A real language model and a video model on one scheduler: it chats, encodes the prompts and rewrites them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from braid.diffusion.prompts import LanguageModelFacts
from braid.errors import ContextLengthExceeded
from braid.llm_core.core import RequestClass
from braid.llm_core.decode import GenerateParams
from braid.llm_core.engine.messages import Finished, SamplingParams, TextDelta
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.models.torch_model import TorchModel
from braid.llm_core.text.tokenizer import Tokenizer
from braid.tests.diffusion.rig import World, digest, film, write_files
from braid.tests.llm_core.trace_rig import Rig
from braid.tests.tiny_ltx2 import official_metadata, tiny_config, tiny_tensors
from braid.tests.tiny_models import write_gguf

HIDDEN_SIZE, NUM_LAYERS = 64, 3
NUM_CHAT_TOKENS = 40
CONTEXT_LENGTH = 740


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, Tokenizer]:
    checkpoint = open_checkpoint(write_gguf(tmp_path_factory.mktemp("language") / "tiny.gguf", "llama"))
    return TorchModel(checkpoint.config, checkpoint.weights, device="cpu"), checkpoint.tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy checkpoint, trained with that language model, as its metadata says."""
    folder = write_files(tmp_path_factory.mktemp("toy"))
    config = tiny_config()
    encoder = {"name": "tiny", "hidden_size": HIDDEN_SIZE, "num_layers": NUM_LAYERS, "max_length": 16}
    tensors = tiny_tensors(config, text_width=HIDDEN_SIZE * (NUM_LAYERS + 1))
    save_file(tensors, folder / "model.safetensors", official_metadata(config, braid={"text_encoder": encoder}))
    return folder


def world_of(folder: Path, language: tuple[TorchModel, Tokenizer]) -> World:
    model, tokenizer = language
    rig = Rig(model, tokenizer, num_pages=64)
    return World(folder, rig.workload, language=LanguageModelFacts(tokenizer, None, CONTEXT_LENGTH))


def prompted(seed: int, **changes: Any) -> Any:
    words = {
        "prompt": f"a red fox number {seed}",
        "prompt_embeds": None,
        "negative_prompt_embeds": None,
        "negative_prompt": "grey",
    }
    return film(seed, output_type="latents", **(words | changes))


def chat(world: World, name: str) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_CHAT_TOKENS, ignore_eos=True)
    world.submit(name, GenerateParams((5, 6, 7), sampling, 1, NUM_CHAT_TOKENS), RequestClass.INTERACTIVE)


def chatted(world: World, name: str) -> list[int]:
    assert isinstance(world.events[name][-1], Finished)
    return [token for event in world.events[name] if isinstance(event, TextDelta) for token in event.token_ids]


def test_film_and_chat_have_the_same_bits_alone_and_together(
    folder: Path, language: tuple[TorchModel, Tokenizer]
) -> None:
    alone = world_of(folder, language)
    alone.submit("film", prompted(1))
    alone.run()
    chat(alone, "chat")
    alone.run()

    together = world_of(folder, language)
    together.submit("film", prompted(1))
    together.submit("other", prompted(2))
    while "denoise" not in together.kinds():
        together.scheduler.run_once()
    for i in range(3):
        chat(together, f"chat {i}")
    together.run()
    assert digest(together.result("film")) == digest(alone.result("film")) != digest(together.result("other"))
    assert all(chatted(together, f"chat {i}") == chatted(alone, "chat") for i in range(3))
    assert len(chatted(alone, "chat")) == NUM_CHAT_TOKENS
    kinds = together.kinds()
    before, after = kinds[: kinds.index("decode")], kinds[kinds.index("decode") :]
    assert "denoise" in before and "denoise" in after  # chat came in the middle of a film


def test_a_prompt_is_rewritten_by_the_same_model(folder: Path, language: tuple[TorchModel, Tokenizer]) -> None:
    world = world_of(folder, language)
    for name in ("one", "two"):
        world.submit(name, prompted(1, enhance_prompt=True, pipeline="one_stage"))
        world.run()
    first, second = world.result("one"), world.result("two")
    assert first.prompt == second.prompt != "a red fox number 1"
    assert digest(first) == digest(second)
    assert first.latents.video is not None and bool(torch.isfinite(first.latents.video).all())


def test_a_prompt_too_long_to_be_rewritten_is_refused_before_any_work(
    folder: Path, language: tuple[TorchModel, Tokenizer]
) -> None:
    world = world_of(folder, language)
    too_long = prompted(1, prompt="a red fox " * 1_000, enhance_prompt=True, pipeline="one_stage")
    with pytest.raises(ContextLengthExceeded, match=r"enhance_prompt: .* shorten the prompt by"):
        world.submit("film", too_long)
    assert world.kinds() == []
    chat(world, "chat")
    world.run()
    assert len(chatted(world, "chat")) == NUM_CHAT_TOKENS
