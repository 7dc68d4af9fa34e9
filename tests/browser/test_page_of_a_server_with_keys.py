"""The page of a server that asks for a key, is still loading, and has no video model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from devtools import Browser, Page

from braid.rest.keys import Role, new_key

pytestmark = pytest.mark.slow

LOADING_S = 120.0


def give(page: Page, key: str) -> None:
    page.evaluate("document.querySelector('#key-input').value = ''")
    page.write("#key-input", key)
    page.press("Enter")


def test_it_asks_for_the_key_until_one_opens_and_says_what_is_missing(
    browser: Browser, start_server: Callable[..., str], tmp_path: Path, artefacts: Path
) -> None:
    token, key = new_key("visitor", Role.USER)
    (tmp_path / "keys").write_text(f"{key.line}\n")
    page = browser.open(start_server("--api-keys", str(tmp_path / "keys")))
    page.wait_for("document.querySelector('#key-dialog').open")
    assert "key" in page.text("#key-message")
    page.screenshot(artefacts / "key-wanted.png")

    page.click("#key-cancel")
    page.wait_for("document.body.dataset.server === 'locked' && !document.querySelector('#banner').hidden")
    page.screenshot(artefacts / "key-refused.png")

    page.click("#key-button")
    give(page, "wrong")
    page.wait_for("document.querySelector('#key-dialog').open && document.querySelector('#key-input').value === ''")
    give(page, token)
    page.wait_for("!document.querySelector('#key-dialog').open")
    page.wait_for("['loading', 'ready'].includes(document.body.dataset.server)")
    page.screenshot(artefacts / "loading.png")

    page.wait_for("document.body.dataset.server === 'ready'", timeout_s=LOADING_S)
    page.wait_for("document.body.dataset.media === 'none'")
    assert "--video" in page.text("#studio-absent")
    page.write("#chat-input", "What is the capital of France?")
    page.press("Enter")
    page.screenshot(artefacts / "no-video-model.png")
    page.wait_for("document.querySelector('.message.assistant .words')?.textContent.length > 5", timeout_s=60)
    page.reload()
    page.wait_for("document.body.dataset.server === 'ready'")
    assert not page.evaluate("document.querySelector('#key-dialog').open")
