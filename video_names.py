"""What names of video models stand for: the embedded one, and folders that hold all files of a model as it does."""

from __future__ import annotations

from pathlib import Path

from braid.config import LoraConfig, VideoConfig

DEFAULT_VIDEO = "braid-tiny"
EMBEDDED = Path(__file__).parent / "weights" / DEFAULT_VIDEO
CHECKPOINT = "braid-tiny.safetensors"
UPSAMPLER = "upsampler.safetensors"
DISTILLED_LORA = "distilled-lora.safetensors"
STYLE_LORA = "style-{name}-lora.safetensors"


def resolved(config: VideoConfig) -> VideoConfig:
    """The same with files in the place of names; what names no such folder stays as it is.

    A folder brings its upsampler and its distilled LoRA where none are given, and LoRAs may be named by their style.
    """
    folder = EMBEDDED if config.model == DEFAULT_VIDEO else Path(config.model)
    if not (folder / CHECKPOINT).is_file():
        return config
    return VideoConfig(
        model=str(folder / CHECKPOINT),
        upsampler=config.upsampler or _file(folder / UPSAMPLER),
        distilled_lora=config.distilled_lora or _file(folder / DISTILLED_LORA),
        loras=tuple(_style(folder, lora) for lora in config.loras),
        dtype=config.dtype,
        offload=config.offload,
        quantization=config.quantization,
    )


def _file(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def _style(folder: Path, lora: LoraConfig) -> LoraConfig:
    path = folder / STYLE_LORA.format(name=lora.path)
    if Path(lora.path).exists() or not path.is_file():
        return lora
    return LoraConfig(path=str(path), name=lora.name or lora.path, strengths=lora.strengths)
