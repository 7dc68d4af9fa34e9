"""What a key sees of the device's steps."""

from __future__ import annotations

from pathlib import Path

import httpx
from conftest import Studio

from braid.rest.access import Access
from braid.rest.keys import ApiKeys, new_key
from braid.rest.request_owners import RequestOwners

ANN, ANNS_KEY = new_key("ann")
EVE, EVES_KEY = new_key("eve")


def test_a_key_sees_its_own_chats_and_that_others_have_some(tmp_path: Path) -> None:
    with Studio(tmp_path, access=Access(keys=ApiKeys([ANNS_KEY, EVES_KEY]))) as studio:

        def headers(token: str) -> dict[str, str]:
            return {"authorization": f"Bearer {token}"}

        def seen(token: str) -> list[str]:
            answer = httpx.get(f"{studio.server.url}/v1/activity", headers=headers(token))
            return list(answer.json()["steps"][0]["requests"])

        body = {"messages": [{"role": "user", "content": "a"}]}
        talk = httpx.post(f"{studio.server.url}/v1/chat/completions", json=body, headers=headers(ANN)).json()["id"]
        studio.engine.busy_with = [talk]
        assert seen(ANN) == [talk]
        (hidden,) = seen(EVE)
        assert hidden.startswith("other-")


def test_the_oldest_requests_are_forgotten() -> None:
    owners = RequestOwners(most=2)
    for name in ("a", "b", "c"):
        owners.note(name, "ann")
    assert [owners.has(name, "ann") for name in ("a", "b", "c")] == [False, True, True]
    assert not owners.has("c", "eve")
