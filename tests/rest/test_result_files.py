"""Hidden states out of a real engine child: as a file, read once, gone afterwards."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.config import BraidConfig, ServeConfig
from braid.errors import BraidError, EngineDied
from braid.factory import LLM
from braid.llm_core.engine.messages import Encoded, EncodeRequest, Event
from braid.rest.child_process import start_child
from braid.rest.result_files import ResultFiles, discard_result, read_result
from braid.rest.supervisor import Supervisor
from braid.rest.wire_messages import LAST_EVENTS
from braid.server import child_command
from braid.tests.tiny_models import write_gguf

PROMPTS = ["a red circle", "moves to the left, and there is sound"]


def supervised(model: Path, body: Callable[[Supervisor], Awaitable[None]]) -> None:
    config = BraidConfig(model=str(model), num_threads=1, memory_budget_bytes=1 << 28)
    command = child_command(ServeConfig(engine=config))

    async def run() -> None:
        ready = asyncio.Event()
        supervisor = Supervisor(
            lambda generation: start_child(command, generation), name="tiny", on_ready=lambda _: ready.set()
        )
        task = asyncio.create_task(supervisor.run())
        try:
            await asyncio.wait_for(ready.wait(), 60)
            await asyncio.wait_for(body(supervisor), 60)
        finally:
            supervisor.close()
            await task

    asyncio.run(run())


async def encode(supervisor: Supervisor, request_id: str) -> Event:
    ended: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
    supervisor.submit(
        EncodeRequest(id=request_id, prompts=PROMPTS),
        lambda event: ended.set_result(event) if isinstance(event, LAST_EVENTS) else None,
    )
    return await ended


def encoded(**more: Any) -> Encoded:
    return Encoded("r", torch.arange(24.0).view(1, 2, 3, 4), torch.ones(1, 2, dtype=torch.int64), **more)


def test_an_engine_child_answers_an_encoding_with_a_file_that_is_read_once(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", "llama")
    with LLM(str(model), num_threads=1, memory_budget_bytes=1 << 28) as llm:
        expected = llm.encode(PROMPTS)
    folders: list[Path] = []

    async def body(supervisor: Supervisor) -> None:
        event = await encode(supervisor, "read")
        assert isinstance(event, Encoded), event
        assert event.path is not None
        path = Path(event.path)
        folders.append(path.parent)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        result = read_result(event)
        assert np.array_equal(result.hidden_states, expected.hidden_states.numpy())
        assert np.array_equal(result.attention_mask, expected.attention_mask.numpy())
        assert list(path.parent.iterdir()) == []
        with pytest.raises(EngineDied, match="gone with the engine"):
            read_result(event)
        assert isinstance(await encode(supervisor, "never read"), Encoded)
        assert len(list(path.parent.iterdir())) == 1

    supervised(model, body)
    assert not folders[0].exists()


def test_a_killed_engine_leaves_no_results_behind(tmp_path: Path) -> None:
    folders: list[Path] = []

    async def body(supervisor: Supervisor) -> None:
        event = await encode(supervisor, "never read")
        assert isinstance(event, Encoded)
        assert event.path is not None
        folders.append(Path(event.path).parent)
        assert supervisor._child is not None
        supervisor._child.process.kill()

    supervised(write_gguf(tmp_path / "tiny.gguf", "llama"), body)
    assert not folders[0].exists()


def test_a_result_goes_through_its_file_unchanged_and_can_be_discarded(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path / "results")
    read = read_result(files.write(encoded()))
    assert read.hidden_states.dtype == np.float32
    assert np.array_equal(read.hidden_states, encoded().hidden_states.numpy())
    assert read.attention_mask.tolist() == [[1, 1]]
    discard_result(files.write(encoded()))
    assert list((tmp_path / "results").iterdir()) == []
    files.close()
    assert not (tmp_path / "results").exists()


def test_a_folder_that_somebody_else_made_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(BraidError, match="112 bytes of hidden states could not be written"):
        ResultFiles(tmp_path).write(encoded())
    assert list(tmp_path.iterdir()) == []
