"""The pages of traces as a person sees them: the device's last seconds, and from there one request."""

from __future__ import annotations

import json
import urllib.request

import pytest
from devtools import Browser, Open

pytestmark = pytest.mark.slow


def chat(url: str) -> str:
    """The id of a short answer's request."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["id"])


def test_a_request_is_seen_on_the_device_and_followed_to_its_trace(
    open_page: Open, browser: Browser, server_url: str
) -> None:
    open_page()
    name = chat(server_url)
    page = browser.open(f"{server_url}/timeline")
    try:
        link = f"[...document.querySelectorAll('#legend a')].find((a) => a.textContent === {json.dumps(name)})"
        page.wait_for(f"Boolean({link})")
        assert "steps; busy" in page.text("#status")
        page.click("#fit")
        page.wait_for("document.querySelector('#traces li') !== null")
        assert "POST /v1/chat/completions" in page.text("#traces")
        page.evaluate(f"{link}.click()")
        page.wait_for("/^[0-9]+ spans$/.test(document.querySelector('#status')?.textContent ?? '')")
        assert page.text("#title").startswith("trace ")
        assert not page.complaints
    finally:
        page.close()


@pytest.mark.parametrize("address", ["unknown", "%25zz", "%zz"])
def test_a_trace_that_is_not_there_is_said_to_be_missing(
    open_page: Open, browser: Browser, server_url: str, address: str
) -> None:
    open_page()
    page = browser.open(f"{server_url}/trace/{address}")
    try:
        page.wait_for("document.querySelector('#status').textContent.startsWith('there is no trace')")
    finally:
        page.close()
