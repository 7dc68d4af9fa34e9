from __future__ import annotations

import logging
import threading

import pytest

from braid.llm_core.core import JournalEntry
from braid.llm_core.scheduler.journal import Journal


def entry(number: int) -> JournalEntry:
    return JournalEntry(number, "toy", "work", ("a",), "device", float(number), 1.0, 0.0, 1.0, 0, 1)


def fill(journal: Journal, num_entries: int) -> None:
    for _ in range(num_entries):
        journal.append(entry(journal.next_number))


def numbers(journal: Journal, since: int = 0) -> list[int]:
    return [entry.number for entry in journal.since(since)]


def test_it_holds_the_last_entries_in_order() -> None:
    journal = Journal(capacity=4)
    assert numbers(journal) == []
    fill(journal, 3)
    assert numbers(journal) == [0, 1, 2]
    fill(journal, 7)
    assert numbers(journal) == [6, 7, 8, 9]
    assert numbers(journal, since=8) == [8, 9]
    assert numbers(journal, since=10) == numbers(journal, since=99) == []


def test_a_capacity_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Journal(capacity=0)


def test_a_number_out_of_turn_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        Journal().append(entry(1))


def test_subscribers_hear_every_entry_until_they_stop() -> None:
    journal = Journal()
    heard: list[JournalEntry] = []
    stop = journal.subscribe(heard.append)
    fill(journal, 2)
    stop()
    fill(journal, 1)
    assert [entry.number for entry in heard] == [0, 1]


def test_a_subscriber_that_fails_is_dropped_and_the_others_hear_on(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()
    calls: list[int] = []

    def broken(entry: JournalEntry) -> None:
        calls.append(entry.number)
        raise RuntimeError("broken")

    heard: list[JournalEntry] = []
    journal.subscribe(broken)
    journal.subscribe(heard.append)
    with caplog.at_level(logging.ERROR):
        fill(journal, 3)
    assert calls == [0]
    assert len(heard) == 3
    assert "broken" in caplog.text


def test_readers_on_other_threads_see_no_gap_and_no_stranger() -> None:
    journal = Journal(capacity=8)
    is_done = threading.Event()
    wrong: list[list[int]] = []

    def read() -> None:
        while not is_done.is_set():
            seen = numbers(journal)
            if seen and seen != list(range(seen[0], seen[-1] + 1)):
                wrong.append(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    fill(journal, 20_000)
    is_done.set()
    for reader in readers:
        reader.join(10)
    assert wrong == []
