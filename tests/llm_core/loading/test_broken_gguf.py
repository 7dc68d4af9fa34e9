"""Broken GGUF files: each is refused with the place and what is wrong, and none crashes, hangs or eats memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.errors import BraidError, ModelFileError, UnsupportedModel
from braid.llm_core.loading.gguf import GGUFFile
from braid.llm_core.loading.gguf_model import open_gguf_model
from braid.llm_core.loading.mapped_weights import check_finite
from braid.tests.tiny_models import write_gguf


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


@dataclass
class Draft:
    """The parts of a GGUF file, each of which a test may get wrong. As it stands, it is sound."""

    magic: bytes = b"GGUF"
    version: bytes = u32(3)
    num_tensors: int | None = None
    num_entries: int | None = None
    entries: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = bytes(256)

    def __bytes__(self) -> bytes:
        counts = u64(len(self.tensors) if self.num_tensors is None else self.num_tensors)
        counts += u64(len(self.entries) if self.num_entries is None else self.num_entries)
        header = self.magic + self.version + counts + b"".join(self.entries) + b"".join(self.tensors)
        return header + bytes(-len(header) % 32) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(bytes(self))
        return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broken.gguf"


def test_every_value_type_is_read(path: Path) -> None:
    numbers = {0: ("<B", 200), 1: ("<b", -5), 2: ("<H", 60000), 3: ("<h", -300), 4: ("<I", 4_000_000_000),
               5: ("<i", -70000), 6: ("<f", 0.5), 10: ("<Q", 2**63 + 1), 11: ("<q", -(2**60)), 12: ("<d", 0.1)}
    entries = [entry(f"n{kind}", kind, struct.pack(layout, value)) for kind, (layout, value) in numbers.items()]
    entries += [
        entry(f"a{kind}", 9, u32(kind) + u64(2) + 2 * struct.pack(layout, value))
        for kind, (layout, value) in numbers.items()
    ]
    entries += [
        entry("bool", 7, b"\1"),
        entry("bools", 9, u32(7) + u64(3) + b"\1\0\1"),
        entry("text", 8, text("grüße")),
        entry("texts", 9, u32(8) + u64(3) + text("") + text("a") + text("Ġb")),
        entry("empty", 9, u32(8) + u64(0)),
        entry("nested", 9, u32(9) + u64(2) + u32(4) + u64(1) + u32(7) + u32(8) + u64(1) + text("x")),
    ]
    metadata = GGUFFile(Draft(entries=entries).write(path)).metadata
    for kind, (_, value) in numbers.items():
        assert (metadata[f"n{kind}"], metadata[f"a{kind}"]) == (value, [value, value])
        assert type(metadata[f"a{kind}"][0]) is type(value)
    assert metadata["bool"] is True
    assert [flag is True for flag in metadata["bools"]] == [True, False, True]
    assert (metadata["text"], metadata["texts"], metadata["empty"]) == ("grüße", ["", "a", "Ġb"], [])
    assert metadata["nested"] == [[7], ["x"]]


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(path: Path, version: int) -> None:
    file = GGUFFile(Draft(version=u32(version), tensors=[tensor(shape=(8, 4))]).write(path))
    assert file.version == version
    assert file.tensors["t"].shape == (4, 8)


def test_alignment_moves_the_data(path: Path) -> None:
    draft = Draft(entries=[entry("general.alignment", 4, u32(8))], tensors=[tensor(shape=(2,), offset=8)])
    assert GGUFFile(draft.write(path)).tensors["t"].offset % 8 == 0


HUGE = 2**62
BROKEN: dict[str, tuple[bytes | Draft, str]] = {
    "empty": (b"", "is empty"),
    "five bytes": (b"GGUF\3", "at byte 0: the header needs 8 bytes and the file has 5 left; it is truncated"),
    "wrong magic": (Draft(magic=b"GGML"), "the file starts with b'GGML'; a GGUF file starts with b'GGUF'"),
    "version 1": (Draft(version=u32(1)), "at byte 4: GGUF version 1 is not read; versions 2 and 3 are"),
    "version 0": (Draft(version=u32(0)), "GGUF version 0 is not read"),
    "version 9": (Draft(version=u32(9)), "GGUF version 9 is not read"),
    "big-endian": (Draft(version=struct.pack(">I", 3)), "the file is big-endian GGUF"),
    "no counts": (b"GGUF" + u32(3), "at byte 8: tensor count needs 8 bytes and the file has 0 left"),
    "huge tensor count": (Draft(num_tensors=HUGE), "tensor count 4,611,686,018,427,387,904 needs"),
    "huge metadata count": (Draft(num_entries=HUGE), "metadata count 4,611,686,018,427,387,904 needs"),
    "too many tensors": (Draft(num_tensors=3, tensors=[tensor()]), "tensor 1 has an empty name"),
    "huge key": (Draft(entries=[u64(HUGE)]), "the length of the key of metadata entry 0 4,611"),
    "empty key": (Draft(entries=[entry("", 4, u32(1))]), "metadata entry 0 has an empty key"),
    "key not UTF-8": (Draft(entries=[entry(b"a\xff", 4, u32(1))]), "at byte 33: the key of metadata entry 0 is not"),
    "key twice": (Draft(entries=2 * [entry("k", 4, u32(1))]), "the metadata key 'k' is there twice"),
    "unknown value type": (Draft(entries=[entry("k", 13, b"")]), "'k' has value type 13; GGUF has the types 0 to 12"),
    "bool of 2": (Draft(entries=[entry("k", 7, b"\2")]), "'k' holds the bool 2; it must be 0 or 1"),
    "bools of 2": (Draft(entries=[entry("k", 9, u32(7) + u64(2) + b"\1\2")]), "at byte 50: 'k' holds the bool 2"),
    "huge string": (Draft(entries=[entry("k", 8, u64(HUGE))]), "the length of 'k' 4,611,686,018,427,387,904 needs"),
    "string not UTF-8": (Draft(entries=[entry("k", 8, text(b"\xc3\x28"))]), "'k' is not UTF-8"),
    "unknown element type": (Draft(entries=[entry("k", 9, u32(77) + u64(0))]), "'k' has element type 77"),
    "huge array": (Draft(entries=[entry("k", 9, u32(12) + u64(HUGE))]), "the element count of 'k' 4,611"),
    "huge array of strings": (Draft(entries=[entry("k", 9, u32(8) + u64(2**40))]), "the element count of 'k' 1,099"),
    "string past the end": (
        Draft(entries=[entry("k", 9, u32(8) + u64(2) + text("a") + u64(2**40))], data=b""),
        "the length of element 1 of 'k' 1,099,511,627,776 needs",
    ),
    "strings cut off": (
        Draft(entries=[entry("k", 9, u32(8) + u64(2) + text("a" * 40))], data=b"").__bytes__()[:100],
        "at byte 97: the length of element 1 of 'k' needs 8 bytes and the file has 3 left",
    ),
    "strings not UTF-8": (
        Draft(entries=[entry("k", 9, u32(8) + u64(2) + text("a") + text(b"\x80"))]),
        "element 1 of 'k' is not UTF-8",
    ),
    "nested too deeply": (
        Draft(entries=[entry("k", 9, 5 * (u32(9) + u64(1)) + u32(0) + u64(0))]), "'k' nests arrays deeper than 4",
    ),
    "alignment 0": (Draft(entries=[entry("general.alignment", 4, u32(0))]), "general.alignment is 0; it must be"),
    "alignment 12": (Draft(entries=[entry("general.alignment", 4, u32(12))]), "must be a positive multiple of 8"),
    "alignment true": (Draft(entries=[entry("general.alignment", 7, b"\1")]), "general.alignment is True"),
    "no dimensions": (Draft(tensors=[tensor(shape=())]), "tensor 't' has 0 dimensions; 1 to 4 are possible"),
    "many dimensions": (Draft(tensors=[text("t") + u32(2**31)]), "tensor 't' has 2147483648 dimensions"),
    "zero dimension": (Draft(tensors=[tensor(shape=(32, 0))]), r"tensor 't' has the shape \(0, 32\); every dimension"),
    "huge dimensions": (Draft(tensors=[tensor(shape=(HUGE, HUGE, HUGE))]), "tensor 't' of shape .* would take"),
    "dimensions that wrap to 0": (Draft(tensors=[tensor(shape=(2**32, 2**32))]), "the file ends at 352"),
    "unknown tensor type": (Draft(tensors=[tensor(kind=4)]), "tensor 't' has the unknown type 4; supported"),
    "tensor of half a block": (Draft(tensors=[tensor(shape=(40,), kind=8)]), "rows of 40; Q8_0 rows must be a mul"),
    "offset past the end": (Draft(tensors=[tensor(offset=HUGE)]), "would take the bytes 4,611,686,018,427,387,968 to"),
    "data past the end": (Draft(tensors=[tensor(shape=(65,))]), "would take the bytes 64 to 324; the file ends at 320"),
    "offset misaligned": (Draft(tensors=[tensor(offset=4)]), "has the offset 4; it must be a multiple of the"),
    "tensor twice": (Draft(tensors=[tensor(), tensor(offset=128)]), "at byte 57: the tensor 't' is there twice"),
    "tensor name not UTF-8": (Draft(tensors=[text(b"\xff") + bytes(40)]), "the name of tensor 0 is not UTF-8"),
    "tensors overlap": (
        Draft(tensors=[tensor("a", (48,)), tensor("b", offset=128)]),
        "tensor 'b' starts at byte 224, inside tensor 'a', which ends at 288",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_place(path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path.write_bytes(bytes(content))
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=message) as raised:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(raised.value)
    assert raised.value.status == 400


def test_a_sound_type_that_we_cannot_read_is_unsupported_by_name(path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="tensor 't' is stored as IQ4_NL, which is not read; supported are F32"):
        GGUFFile(Draft(tensors=[tensor(kind=20)]).write(path))


def test_metadata_beyond_reason_is_refused_before_it_is_unpacked(path: Path) -> None:
    draft = Draft(entries=[entry("k", 9, u32(0) + u64(100 << 20))], data=b"")
    path.write_bytes(bytes(draft))
    with path.open("r+b") as file:
        file.truncate(200 << 20)  # sparse: takes no disk
    with pytest.raises(ModelFileError, match="would make the metadata longer than 67,108,864 bytes"):
        GGUFFile(path)


@pytest.mark.parametrize("make", ["missing", "folder", "fifo"])
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x.gguf"
    if make == "folder":
        path.mkdir()
    if make == "fifo":
        os.mkfifo(path)
    with pytest.raises(ModelFileError, match=r"cannot be read|is not a regular file"):
        GGUFFile(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "x.gguf"
    return write_gguf(path, "llama", storage="Q4_0", num_hidden_layers=1).read_bytes()


def test_a_file_cut_anywhere_is_refused(sound: bytes, path: Path) -> None:
    lengths = sorted({*range(1, 1200, 13), *range(1200, len(sound), 997), len(sound) - 40})
    for length in lengths:
        path.write_bytes(sound[:length])
        with pytest.raises(ModelFileError, match="truncated or damaged"):
            open_gguf_model(path)


@pytest.mark.parametrize(
    ("storage", "name", "what"),
    [("Q4_0", "model.layers.0.mlp.up_proj.weight", "scale inf"), ("F32", "model.norm.weight", "number nan"),
     ("Q6_K", "model.embed_tokens.weight", "scale nan"), ("BF16", "lm_head.weight", "number inf")],
)  # fmt: skip
def test_weights_that_are_not_finite_are_refused(path: Path, storage: str, name: str, what: str) -> None:
    write_gguf(path, "llama", storage=storage, num_hidden_layers=1)
    stored = open_gguf_model(path).weights[name]
    data = bytearray(path.read_bytes())
    last = stored.offset + stored.raw().numel() - stored.raw().numel() // stored.raw().shape[0]
    bad = {"Q4_0": np.float16("inf"), "F32": np.float32("nan"), "Q6_K": np.float16("nan")}.get(storage)
    at = last + (208 if storage == "Q6_K" else 0)
    value = b"\x80\x7f" if bad is None else bad.tobytes()
    data[at : at + len(value)] = value
    path.unlink()
    path.write_bytes(data)
    weights = open_gguf_model(path).weights
    with pytest.raises(ModelFileError, match=rf"tensor '[a-z0-9_.]+' \({storage}, shape .*\) has the {what} at index"):
        weights[name].to_torch(torch.float32)
    with pytest.raises(ModelFileError, match="weights must be finite"):
        check_finite(weights)


def test_a_tensor_that_is_not_there_is_named(path: Path) -> None:
    weights = open_gguf_model(write_gguf(path, "llama", num_hidden_layers=1)).weights
    with pytest.raises(ModelFileError, match=r"broken\.gguf has no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        weights["model.layers.1.mlp.up_proj.weight"]


def load_all(path: Path) -> None:
    weights = open_gguf_model(path).weights
    for name in weights:
        weights[name].to_torch(torch.float32)


@settings(max_examples=1000, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_harmless_or_a_clear_error(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    header_bytes = len(sound) - sum(info.num_bytes for info in sound_tensors(sound, tmp_path))
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header_bytes - 1) | st.integers(0, len(sound) - 1))
        change = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), u64(HUGE)]))
        damaged[position : position + len(change)] = change
    path = tmp_path / f"{abs(hash(bytes(damaged)))}.gguf"
    path.write_bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))])
    try:
        load_all(path)
    except BraidError:
        pass  # anything else, such as a ValueError, fails the test; so does a time above the deadline
    finally:
        path.unlink()


def sound_tensors(sound: bytes, folder: Path) -> list:
    path = folder / "sound.gguf"
    if not path.exists():
        path.write_bytes(sound)
    return list(GGUFFile(path).tensors.values())
