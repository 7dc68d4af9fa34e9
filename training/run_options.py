"""What every training run has: options, and how it uses a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def run_parser(description: str, *, minutes: float) -> argparse.ArgumentParser:
    """With `out`, `minutes`, `device` and `seed`.

    Args:
        minutes: if none are given.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--minutes", type=float, default=minutes, help="for all of it")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--seed", type=int, default=0)
    return parser


def prepare_gpu() -> None:
    """Fast products, algorithms by trial, and attention that can be recorded in a CUDA graph."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(False)
