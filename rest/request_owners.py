"""Whose the newest chats are: their ids stand in the engine's journal, which knows no owners."""

from __future__ import annotations

from collections import OrderedDict

MAX_REMEMBERED = 4096
"""More than the journal's last minute names; older ones are forgotten."""


class RequestOwners:
    """Used on the event loop."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._most = most

    def note(self, request_id: str, owner: str) -> None:
        """A request of an owner begins."""
        self._owners[request_id] = owner
        if len(self._owners) > self._most:
            self._owners.popitem(last=False)

    def has(self, request_id: str, owner: str) -> bool:
        """Whether it is known to be this owner's."""
        return self._owners.get(request_id) == owner
