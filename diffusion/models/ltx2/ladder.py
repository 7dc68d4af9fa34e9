"""The blocks of a video autoencoder, as its configuration lists them."""

from __future__ import annotations

from dataclasses import dataclass

from braid.diffusion.models.ltx2.config import Section
from braid.errors import UnsupportedModel

STRIDES: dict[str, tuple[int, int]] = {
    "compress_time": (2, 1), "compress_space": (1, 2), "compress_all": (2, 2),
    "compress_time_res": (2, 1), "compress_space_res": (1, 2), "compress_all_res": (2, 2),
}  # fmt: skip
"""Of a block of the video autoencoder: its factors in time and in each direction of space."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rung of the video autoencoder's ladder."""

    kind: str
    """`res_x` or a key of `STRIDES`."""
    num_layers: int = 0
    multiplier: int = 1
    residual: bool = False
    inject_noise: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        """Time, space."""
        return STRIDES.get(self.kind, (1, 1))


def read_blocks(section: Section, key: str) -> tuple[Block, ...]:
    """A ladder, in the order of the config.

    Raises:
        ModelFileError: it is not a list of [name, options].
        UnsupportedModel: a block of another kind.
    """
    rows = section.value(key)
    if not isinstance(rows, list) or not rows:
        raise section.error(key, rows, "a list of [name, options]")
    return tuple(_read_block(section, f"{key}[{index}]", row) for index, row in enumerate(rows))


def _read_block(section: Section, name: str, row: object) -> Block:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], dict | int):
        raise section.error(name, row, "[name, options]")
    kind = row[0]
    # The short form [name, n] means n layers, or a multiplier of n.
    values = row[1] if isinstance(row[1], dict) else {"num_layers" if kind == "res_x" else "multiplier": row[1]}
    options = Section(section.path, f"{section.name}.{name}", values)
    if kind == "res_x":
        noise = options.boolean("inject_noise", False)
        return Block(kind, num_layers=options.integer("num_layers"), inject_noise=noise)
    if kind not in STRIDES:
        known = ", ".join(("res_x", *STRIDES))
        raise UnsupportedModel(f"{section.path}: config {section.name}.{name} is a {kind!r}; supported are {known}")
    # Blocks without `_res` shrink by 2 unless told otherwise; the config of released files always says.
    return Block(kind, multiplier=options.integer("multiplier", 1), residual=options.boolean("residual", False))
