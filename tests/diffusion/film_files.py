"""Everything on disk that a generator is made of, at toy size: the checkpoint names the language model beside it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from braid.tests.diffusion.rig import write_files
from braid.tests.tiny_ltx2 import SIZES, official_metadata, tiny_config, tiny_tensors
from braid.tests.tiny_models import write_gguf

HIDDEN_SIZE, NUM_LAYERS = 64, 3
PIPELINES = ("one_stage", "two_stage", "two_stage_hq", "distilled", "retake", "extend", "text_to_audio")


def write_film_files(folder: Path) -> Path:
    """A checkpoint, its upsampler, two adapters, and the language model that the checkpoint was trained with."""
    language = write_gguf(folder / "language.gguf", "llama")
    write_gguf(folder / "other.gguf", "llama", hidden_size=32, head_dim=8)
    write_files(folder)
    config = tiny_config()
    encoder = {"name": str(language), "hidden_size": HIDDEN_SIZE, "num_layers": NUM_LAYERS, "max_length": 16}
    own = {"text_encoder": encoder, "presets": dict.fromkeys(PIPELINES, SIZES)}
    tensors = tiny_tensors(config, text_width=HIDDEN_SIZE * (NUM_LAYERS + 1))
    save_file(tensors, folder / "model.safetensors", official_metadata(config, braid=own))
    return folder
