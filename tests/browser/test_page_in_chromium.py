"""What a person does on the page: chats, makes a picture and a film, cancels one, comes back; with eyes or without."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from devtools import BrowserError, Open, Page

pytestmark = pytest.mark.slow

WIDTHS = {360: 740, 820: 1100, 1440: 900}
"""A phone, a tablet, a desk; with their heights."""
WORK_S = 120.0
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
ANSWER = ".message.assistant:last-child"


def is_refused(complaint: str) -> bool:
    """Chromium logs every refused request as an error; the page shows it, so it is none of the page's."""
    return complaint.startswith("Failed to load resource")


def complaints(page: Page) -> list[str]:
    return [complaint for complaint in page.complaints if not is_refused(complaint)]


def ask(page: Page, text: str) -> None:
    set_field(page, "#chat-temperature", 0)
    page.write("#chat-input", text)
    page.press("Enter")


def ask_for_much(page: Page) -> None:
    """The model of the tests goes on about this for hundreds of words."""
    ask(page, "Write a long story about a red circle.")


def wait_for_answer(page: Page) -> str:
    page.wait_for(f"document.querySelector('{ANSWER}:not(.is-writing) .words')?.textContent", timeout_s=60)
    return page.text(f"{ANSWER} .words")


def set_field(page: Page, selector: str, value: object) -> None:
    """As somebody who writes into it; the field may be folded away."""
    page.evaluate(f"""(() => {{
      const field = document.querySelector({json.dumps(selector)});
      field.value = {json.dumps(value)};
      for (const type of ["input", "change"]) field.dispatchEvent(new Event(type));
    }})()""")


def anew(text: str) -> str:
    """A prompt that no work of an earlier run has."""
    return f"{text} {secrets.token_hex(3)}"


def make(page: Page, mode: str, prompt: str, **settings: object) -> None:
    """Fill in the form and send it off."""
    page.click(f"input[name=mode][value={mode}]")
    page.evaluate("document.querySelector('#prompt').value = ''")
    page.write("#prompt", prompt)
    for name, value in settings.items():
        set_field(page, f"#set-{name}", value)
    page.click("#make")


def card(prompt: str, status: str | None = None) -> str:
    """An expression: the card of a work with that prompt."""
    state = "" if status is None else f" && card.dataset.status === '{status}'"
    condition = f"card.querySelector('.work-prompt').textContent === {json.dumps(prompt)}{state}"
    return f"[...document.querySelectorAll('.work')].find((card) => {condition})"


def jobs(page: Page, path: str) -> list[dict[str, Any]]:
    """What the server itself says."""
    return list(page.evaluate(f"fetch('{path}').then((answer) => answer.json()).then(({{ data }}) => data)"))


def test_a_question_is_answered_word_by_word_and_an_answer_can_be_stopped(open_page: Open, artefacts: Path) -> None:
    page = open_page("#chat")
    ask(page, "What is the capital of France?")
    assert "Paris" in wait_for_answer(page)
    assert page.text(".message.user .words") == "What is the capital of France?"
    ask_for_much(page)
    page.wait_for("document.querySelectorAll('.message.assistant').length === 2")
    page.wait_for(f"document.querySelector('{ANSWER}.is-writing .words')?.textContent.length > 20")
    page.screenshot(artefacts / "chat-writing.png")
    page.click("#stop")
    page.wait_for(f"document.querySelector('{ANSWER} .note')?.textContent === 'Stopped.'")
    page.wait_for("!document.querySelector('#send').hidden && document.activeElement.id === 'chat-input'")
    assert not complaints(page)


def test_conversations_stay_in_the_browser(open_page: Open) -> None:
    page = open_page("#chat")
    ask(page, "What is the capital of France?")
    answer = wait_for_answer(page)
    page.click("#new-conversation")
    assert page.count(".message") == 0
    page.reload()
    page.wait_for("document.body.dataset.server === 'ready'")
    page.click("#conversation-button")
    page.wait_for("document.querySelector('#conversation-list button')")
    page.click("#conversation-list li:first-child button")
    assert page.text(f"{ANSWER} .words") == answer
    page.evaluate("[...document.querySelectorAll('#conversation-button')].forEach((button) => button.click())")
    page.click("#conversation-list li:first-child .icon-button")
    page.wait_for("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.wait_for("document.querySelectorAll('.message').length === 0")


def test_a_picture_and_a_film_are_made_and_found_after_a_reload(open_page: Open, artefacts: Path) -> None:
    page = open_page("#studio")
    picture, film = anew("a blue square on the left"), anew("a red circle moves to the right")
    make(page, "image", picture, width=128, height=128)
    page.wait_for(
        card(picture, "completed") + "?.querySelector('img:not(.is-preview)')?.naturalWidth > 0", timeout_s=WORK_S
    )
    make(page, "video", film, width=128, height=64, num_frames=17, seed=7, num_inference_steps=30)
    page.wait_for(card(film) + "?.querySelector('progress').value > 0", timeout_s=WORK_S)
    page.wait_for(card(film) + "?.querySelector('img.is-preview')?.naturalWidth > 0", timeout_s=WORK_S)
    page.screenshot(artefacts / "film-being-made.png")
    page.wait_for(
        card(film, "completed") + "?.querySelector('img:not(.is-preview)')?.naturalWidth > 0", timeout_s=WORK_S
    )
    page.reload()
    page.wait_for(card(film, "completed") + "?.querySelector('img')?.naturalWidth > 0")
    page.wait_for(card(picture, "completed") + "?.querySelector('img')?.naturalWidth > 0")
    assert page.evaluate(f"{card(film)}.compareDocumentPosition({card(picture)}) & Node.DOCUMENT_POSITION_FOLLOWING")
    page.screenshot(artefacts / "gallery-after-reload.png")
    page.evaluate(f"{card(film)}.querySelector('button').click()")
    page.wait_for("document.querySelector('.viewer video')?.videoWidth === 128")
    page.wait_for("document.querySelector('.viewer video').readyState >= HTMLMediaElement.HAVE_CURRENT_DATA")
    assert page.evaluate("document.querySelector('.viewer video').duration") == pytest.approx(17 / 24, abs=0.1)
    assert "128 × 64" in page.text(".viewer .facts")
    page.screenshot(artefacts / "film-in-the-viewer.png")
    assert not complaints(page)


def test_seed_and_settings_are_used_again(open_page: Open) -> None:
    page = open_page("#studio")
    prompt = anew("a green triangle falls")
    make(page, "video", prompt, width=128, height=64, num_frames=9, seed=4242, num_inference_steps=3)
    page.wait_for(card(prompt, "completed"), timeout_s=WORK_S)
    page.evaluate(f"{card(prompt)}.querySelector('button').click()")
    page.wait_for("document.querySelector('.viewer').open")
    page.reload()
    page.wait_for(card(prompt, "completed"))
    page.evaluate(f"{card(prompt)}.querySelector('button').click()")
    page.click(".viewer-actions button:first-child")
    fields = {
        name: page.evaluate(f"document.querySelector('#set-{name}').value") for name in ("seed", "width", "height")
    }
    assert fields == {"seed": "4242", "width": "128", "height": "64"}
    assert page.evaluate("document.querySelector('#prompt').value") == prompt
    page.click("#make")
    page.wait_for(
        "[...document.querySelectorAll('.work[data-status=completed] .work-prompt')]"
        f".filter((one) => one.textContent === {json.dumps(prompt)}).length === 2",
        timeout_s=WORK_S,
    )
    one, other = (job["params"] for job in jobs(page, "v1/videos") if job["prompt"] == prompt)
    assert one == other


def test_a_cancelled_film_is_gone_from_the_device_and_the_next_one_is_made(open_page: Open, artefacts: Path) -> None:
    page = open_page("#studio")
    long, short = anew("a film that nobody waits for"), anew("a film made after a cancelled one")
    make(page, "video", long, width=128, height=128, num_frames=25, num_inference_steps=400)
    page.wait_for(card(long, "in_progress"), timeout_s=WORK_S)
    page.evaluate(f"{card(long)}.querySelector('[aria-label^=Cancel]').click()")
    page.wait_for(card(long, "cancelled"), timeout_s=30)
    page.screenshot(artefacts / "film-cancelled.png")
    (job,) = (job for job in jobs(page, "v1/videos") if job["prompt"] == long)
    assert (job["status"], job["files"]) == ("cancelled", [])
    make(page, "video", short, width=64, height=64, num_frames=9, num_inference_steps=2)
    page.wait_for(card(short, "completed"), timeout_s=WORK_S)


def test_a_film_is_extended_and_made_again_with_other_words(open_page: Open) -> None:
    page = open_page("#studio")
    original, longer, other = anew("a square rolls"), anew("it rolls on"), anew("a circle rolls")
    make(page, "video", original, width=64, height=64, num_frames=17, seed=5, num_inference_steps=2)
    page.wait_for(card(original, "completed"), timeout_s=WORK_S)
    for action, prompt in (("Extend", longer), ("Remix", other)):
        page.evaluate(f"{card(original)}.querySelector('button').click()")
        page.wait_for("document.querySelector('.viewer').open")
        page.evaluate(
            "[...document.querySelectorAll('.viewer-actions button')]"
            f".find((button) => button.textContent === '{action}').click()"
        )
        page.wait_for("!document.querySelector('#source').hidden")
        page.evaluate("document.querySelector('#prompt').value = ''")
        page.write("#prompt", prompt)
        page.click("#make")
        page.wait_for(f"{card(prompt)} || !document.querySelector('#easel-error').hidden", timeout_s=30)
        assert page.evaluate("document.querySelector('#easel-error').textContent") == ""
        page.wait_for(card(prompt, "completed"), timeout_s=WORK_S)
    found = {job["prompt"]: job for job in jobs(page, "v1/videos")}
    assert found[longer]["extended_from_video_id"] == found[original]["id"]
    assert found[other]["remixed_from_video_id"] == found[original]["id"]
    assert found[other]["params"]["seed"] == 5


def test_a_sound_is_made_and_can_be_heard(open_page: Open) -> None:
    page = open_page("#studio")
    prompt = anew("a bell")
    make(page, "audio", prompt, num_frames=9, num_inference_steps=2)
    page.wait_for(card(prompt, "completed"), timeout_s=WORK_S)
    page.evaluate(f"{card(prompt)}.querySelector('button').click()")
    page.wait_for("document.querySelector('.viewer audio')?.duration > 0.1")


def test_a_work_is_deleted_only_after_a_question(open_page: Open) -> None:
    page = open_page("#studio")
    prompt = anew("a film to be deleted")
    make(page, "video", prompt, width=64, height=64, num_frames=9, num_inference_steps=2)
    page.wait_for(card(prompt, "completed"), timeout_s=WORK_S)
    place = "JSON.stringify(document.querySelector('.viewer-actions').getBoundingClientRect())"
    for answer in ("[value=no]", "[value=yes]"):
        page.evaluate(f"{card(prompt)}.querySelector('button').click()")
        page.wait_for("document.querySelector('.viewer').open")
        before = page.evaluate(place)
        page.wait_for("document.querySelector('.viewer video').readyState > 0")
        assert page.evaluate(place) == before  # nothing moves under the pointer when the film has loaded
        page.click(".viewer-actions button:last-child")
        page.wait_for("document.querySelector('#confirm').open")
        page.click(f"#confirm {answer}")
        if answer == "[value=no]":
            assert page.evaluate(f"Boolean({card(prompt)})")
            page.press("Escape")
            page.wait_for("!document.querySelector('.viewer').open")
    page.wait_for(f"!{card(prompt)} && !document.querySelector('.viewer').open")
    assert prompt not in [job["prompt"] for job in jobs(page, "v1/videos")]


def test_each_question_gets_its_own_answer_however_late_the_one_before_is_closed(open_page: Open) -> None:
    page = open_page("#studio")
    answers = page.evaluate("""(async () => {
      const url = document.querySelector("script[type=module]").src.replace(/[^/]*$/, "dialogs.js");
      const { confirmLoss } = await import(url);
      const say = (answer) => document.querySelector(`#confirm [value=${answer}]`).click();
      const first = confirmLoss("First?", "");
      say("yes");
      const second = confirmLoss("Second?", "");  // the browser tells that the first one was closed after this
      const later = new Promise((resolve) => setTimeout(() => resolve("waits"), 200));
      const meanwhile = await Promise.race([second, later]);
      say("yes");
      const third = confirmLoss("Third?", "");
      say("no");
      return [await first, meanwhile, await second, await third];
    })()""")
    assert answers == [True, "waits", True, False]
    page.evaluate(
        "import(document.querySelector('script[type=module]').src.replace(/[^/]*$/, 'dialogs.js'))"
        ".then(({ confirmLoss }) => { window.answered = confirmLoss('Fourth?', ''); })"
    )
    page.press("Escape")
    assert page.evaluate("window.answered") is False


def test_what_the_server_refuses_is_said_in_its_words_at_the_field(open_page: Open, artefacts: Path) -> None:
    page = open_page("#studio")
    make(page, "video", "too wide", width=100, height=64)
    page.wait_for("!document.querySelector('#easel-error').hidden")
    assert "width=100" in page.text("#easel-error")
    assert page.evaluate("document.activeElement.id") == "set-width"
    assert page.evaluate("document.querySelector('#more').open")
    page.screenshot(artefacts / "refused.png")
    assert not complaints(page)


def test_a_picture_dropped_in_is_the_first_frame(open_page: Open) -> None:
    page = open_page("#studio")
    page.evaluate("""(async () => {
      const canvas = new OffscreenCanvas(64, 64);
      canvas.getContext("2d").fillRect(8, 8, 40, 40);
      const file = new File([await canvas.convertToBlob()], "square.png", { type: "image/png" });
      const data = new DataTransfer();
      data.items.add(file);
      const target = document.querySelector("#studio");
      for (const type of ["dragenter", "dragover", "drop"])
        target.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
    })()""")
    page.wait_for(
        "!document.querySelector('#reference').hidden && document.querySelector('#reference-image').naturalWidth"
    )
    prompt = anew("a square goes on")
    make(page, "video", prompt, width=64, height=64, num_frames=9, num_inference_steps=2)
    page.wait_for(card(prompt, "completed"), timeout_s=WORK_S)
    (job,) = (job for job in jobs(page, "v1/videos") if job["prompt"] == prompt)
    assert job["params"]["images"][0]["frame_index"] == 0


def test_the_language_model_rewrites_a_prompt_and_it_can_be_taken_back(open_page: Open) -> None:
    page = open_page("#studio")
    page.write("#prompt", "a cat")
    page.click("#rewrite")
    page.wait_for("document.querySelector('#rewrite-text').textContent === 'Rewrite' && "
                  "!document.querySelector('#rewrite-undo').hidden", timeout_s=90)  # fmt: skip
    assert len(page.evaluate("document.querySelector('#prompt').value")) > 10
    page.click("#rewrite-undo")
    assert page.evaluate("document.querySelector('#prompt').value") == "a cat"


def test_the_strip_shows_chat_and_film_side_by_side(open_page: Open, artefacts: Path) -> None:
    page = open_page("#studio")
    prompt = anew("a film")
    make(page, "video", prompt, width=128, height=128, num_frames=25, num_inference_steps=20)
    ask_for_much(page)
    page.wait_for("document.querySelector('#loom-summary').textContent.includes('side by side')", timeout_s=WORK_S)
    for name in ("Chat", f"Film: {prompt}"):
        page.wait_for(f"document.querySelector('#loom-threads').textContent.includes({json.dumps(name)})")
    page.wait_for("""(() => {
      const canvas = document.querySelector("#loom-canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const rows = [0, 0];
      for (let at = 3; at < data.length; at += 4) if (data[at]) rows[at < data.length / 2 ? 0 : 1] += 1;
      return rows.every((painted) => painted > 3 * canvas.width);
    })()""", timeout_s=WORK_S)  # fmt: skip
    page.screenshot(artefacts / "side-by-side.png")
    page.click("#stop")
    page.evaluate(f"{card(prompt)}.querySelector('[aria-label^=Cancel]').click()")


@pytest.mark.soak  # waits until the last bar has left
def test_the_strip_draws_some_frames_a_second_and_none_when_nothing_moves(open_page: Open) -> None:
    page = open_page("#studio")
    page.evaluate("""(() => {
      window.drawn = 0;
      const clear = CanvasRenderingContext2D.prototype.clearRect;
      CanvasRenderingContext2D.prototype.clearRect = function (...area) { window.drawn += 1; clear.apply(this, area); };
    })()""")
    ask_for_much(page)
    page.wait_for("window.drawn > 10", timeout_s=WORK_S)
    before, began = page.evaluate("window.drawn"), time.monotonic()
    time.sleep(2)
    assert page.evaluate("window.drawn") - before <= 15 * (time.monotonic() - began) + 4
    page.click("#stop")
    page.wait_for("document.querySelector('#loom-summary').textContent.includes('at rest')", timeout_s=WORK_S)
    time.sleep(10)  # until the last bar has left
    before = page.evaluate("window.drawn")
    time.sleep(2)
    assert page.evaluate("window.drawn") - before <= 3  # once for each time that the server is asked


def test_everything_can_be_done_with_the_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(80):
        page.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    wanted = {
        "key-button",
        "theme-button",
        "conversation-button",
        "chat-input",
        "mode",
        "prompt",
        "reference-button",
        "shape",
    }
    assert wanted <= reached
    page.evaluate("document.querySelector('#prompt').focus()")
    prompt = anew("made without a mouse")
    page.call("Input.insertText", text=prompt)
    page.press("Enter", modifiers=2)
    page.wait_for(card(prompt), timeout_s=30)
    page.wait_for(card(prompt, "completed"), timeout_s=WORK_S)
    page.evaluate(f"{card(prompt)}.querySelector('button').focus()")
    page.press("Enter")
    page.wait_for("document.querySelector('.viewer').open")
    page.press("Escape")
    page.wait_for(f"!document.querySelector('.viewer').open && {card(prompt)}.contains(document.activeElement)")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_can_be_read_at_every_width_and_in_both_themes(
    open_page: Open, artefacts: Path, width: int, theme: str
) -> None:
    for view in ("chat", "studio"):
        page = open_page(f"#{view}", width=width, height=WIDTHS[width], is_dark=theme == "dark")
        page.evaluate("document.querySelector('#more').open = true")
        page.wait_for(
            "document.querySelectorAll('.work').length > 0 || !document.querySelector('#gallery-empty').hidden"
        )
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(artefacts / f"{view}-{width}-{theme}.png")


def test_a_screen_reader_is_told_the_name_of_everything(open_page: Open) -> None:
    page = open_page("#studio")
    page.evaluate("document.querySelector('#more').open = true")
    tree = page.accessibility_tree()
    nameless = [
        node
        for node in tree
        if node["focusable"] and not node["name"] and node["role"] not in ("RootWebArea", "generic")
    ]
    assert not nameless
    landmarks = {(node["role"], node["name"]) for node in tree}
    assert {("main", ""), ("banner", ""), ("region", "Chat"), ("region", "Studio"), ("region", "Gallery")} <= landmarks
    assert ("region", "What the device is doing") in landmarks


def test_the_switch_of_colours_is_remembered(open_page: Open) -> None:
    page = open_page("#chat")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme-button")
    page.click("#theme-button")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_whoever_wants_no_motion_gets_none(open_page: Open) -> None:
    page = open_page("#chat")
    page.set_colours(is_dark=False, is_still=True)
    assert page.evaluate("document.getAnimations().length") == 0
    page.evaluate("document.body.dataset.server = 'loading'")
    assert page.evaluate("document.getAnimations().length") == 0
    page.set_colours(is_dark=False)
    assert page.evaluate("document.getAnimations().length") > 0


def test_text_of_a_model_cannot_become_markup(open_page: Open) -> None:
    page = open_page("#chat")
    with pytest.raises(BrowserError, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    with pytest.raises(BrowserError, match="TrustedScript"):
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { text: 'window.isIn = 1' }))"
        )
    assert not page.evaluate("window.isIn")


def test_a_server_that_is_away_is_said_and_one_that_is_back_too(open_page: Open, artefacts: Path) -> None:
    page = open_page("#chat")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.evaluate("dispatchEvent(new Event('offline'))")
    page.wait_for("document.body.dataset.server === 'offline' && !document.querySelector('#banner').hidden")
    page.screenshot(artefacts / "offline.png")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.evaluate("dispatchEvent(new Event('online'))")
    page.wait_for("document.body.dataset.server === 'ready' && document.querySelector('#banner').hidden")


def test_the_page_asks_nobody_but_its_server(open_page: Open, server_url: str) -> None:
    page = open_page("#studio")
    assert page.requests
    assert all(url.startswith((f"{server_url}/", "blob:", "data:")) for url in page.requests)
