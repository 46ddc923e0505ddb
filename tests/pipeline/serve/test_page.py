"""The page, in a real Chromium: what a person sees and does."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.pipeline.serve.service import hostile_id, serving

from vococache.pipeline.ask import ask
from vococache.pipeline.live.growth import GrowingPart, begin, finish, write
from vococache.storage import claims, open_store
from vococache.workers.reason import ReasonStage

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
PATIENCE = 60_000  # milliseconds, for a machine that is busy


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)


@pytest.fixture
def page(browser: sync_api.Browser, service: str) -> Iterator[sync_api.Page]:
    """The page with its list. Whatever the browser complains of fails the test, as does a request that leaves."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    complaints: list[str] = []
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(service) else None)
    page.goto(service)
    page.locator("#videos li").first.wait_for()
    yield page
    context.close()
    assert [text for text in complaints if "the server responded with a status of 40" not in text] == []


def open_video(page: sync_api.Page, video: str) -> None:
    page.locator("#videos .video").filter(has_text=video).click()
    page.locator("#viewer").wait_for()
    sync_api.expect(page.locator("#title")).to_have_text(video, timeout=PATIENCE)


def put_question(page: sync_api.Page, text: str) -> sync_api.Locator:
    """Ask, wait for the end, and return the last answer."""
    before = page.locator(".answer").count()
    page.fill("#question", text)
    page.press("#question", "Enter")
    answer = page.locator(".answer").nth(before)
    answer.locator(".took, .error").wait_for()
    return answer


def test_the_list_tells_states_and_is_searched(page: sync_api.Page) -> None:
    sync_api.expect(page.locator("#count")).to_have_text("6 videos")
    sync_api.expect(page.locator("#videos li").filter(has_text="broken")).to_contain_text("moov atom not found")
    page.keyboard.press("/")
    page.keyboard.type("clip-2")
    sync_api.expect(page.locator("#count")).to_have_text("1 of 6 videos", timeout=PATIENCE)
    assert page.locator("#videos .name").all_inner_texts() == ["clip-2"]
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#title")).to_have_text("clip-2", timeout=PATIENCE)
    page.fill("#search", "")
    page.select_option("#status", "failed")
    sync_api.expect(page.locator("#videos .name")).to_have_text(["broken"], timeout=PATIENCE)
    page.locator("#videos .video").click()
    sync_api.expect(page.locator("#failure .reason")).to_contain_text("<b>no frames</b>", timeout=PATIENCE)
    assert page.locator("#chat").is_hidden()


def test_an_answer_comes_with_the_seconds_it_rests_on(page: sync_api.Page, stage: ReasonStage) -> None:
    open_video(page, "clip-1")
    assert "knows only synthetic clips" in page.locator("#note").inner_text()
    answer = put_question(page, "what moves?")
    assert answer.locator(".said").inner_text() == ask(stage, "clip-1", "what moves?")[0].answer
    assert answer.locator(".span").inner_text() == "0:00 – 0:03.5"
    second = put_question(page, "how many objects are there?")
    history = list(page.locator(".question").all_inner_texts())
    assert history == ["what moves?", "how many objects are there?"]
    assert second.locator(".said").inner_text()


def test_an_answer_is_shown_while_it_comes(page: sync_api.Page) -> None:
    """Each state that a person sees is a beginning of the next."""
    open_video(page, "clip-1")
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const said = [...document.querySelectorAll(".said")].at(-1);
            if (said) window.seen.push([said.textContent, document.querySelectorAll(".took").length]);
          }).observe(document.getElementById("talk"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    answer = put_question(page, "is the first object faster or slower than the second?")
    seen = page.evaluate("window.seen")
    text = answer.locator(".said").inner_text()
    assert all(text.startswith(state) for state, _ in seen)
    assert [text, 0] in seen, "it is there before the answer has ended"


def test_a_window_is_dragged_asked_about_and_sought(page: sync_api.Page, stage: ReasonStage) -> None:
    open_video(page, "clip-0")
    box = page.locator("#timeline").bounding_box()
    assert box is not None
    for x in (0.26, 0.70):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + 20)
        (page.mouse.down if x == 0.26 else page.mouse.up)()
    start, end = float(page.input_value("#from")), float(page.input_value("#to"))
    assert (start, end) == (pytest.approx(1.0, abs=0.11), pytest.approx(2.8, abs=0.11))
    assert page.locator("#about .part").first.inner_text() == f"0:0{start:g} – 0:0{end:g}".replace("0:01 ", "0:01 ")
    answer = put_question(page, "what moves?")
    expected = ask(stage, "clip-0", "what moves?", start=start, end=end)[0]
    assert answer.locator(".said").inner_text() == expected.answer
    span = expected.segments[0]
    assert 1 < span.start_time + span.end_time < 5, "a part"
    page.evaluate("document.getElementById('player').currentTime = 0")
    answer.locator(".span").click()
    sync_api.expect(page.locator("#timeline")).to_have_attribute("aria-valuenow", f"{span.start_time:.2f}")
    assert page.evaluate("document.getElementById('player').currentTime") == span.start_time
    assert page.evaluate("document.getElementById('player').duration") == pytest.approx(4, abs=0.2)
    page.keyboard.press("Escape")
    page.locator("#timeline").focus()
    page.keyboard.press("Escape")
    assert (page.input_value("#from"), page.input_value("#to")) == ("", "")
    page.keyboard.press("Home")
    for key in ("ArrowRight", "[", "ArrowRight", "]"):
        page.keyboard.press(key)
    assert (page.input_value("#from"), page.input_value("#to")) == ("1", "2")


def test_several_videos_in_one_question(page: sync_api.Page, stage: ReasonStage) -> None:
    open_video(page, "clip-0")
    page.locator("#videos li").filter(has_text="clip-3").hover()
    page.get_by_role("button", name="Ask about clip-3 too").click()
    assert page.locator("#about .name").all_inner_texts() == ["clip-0", "clip-3"]
    answer = put_question(page, "what moves?")
    assert answer.locator(".said").inner_text() == ask(stage, ["clip-0", "clip-3"], "what moves?")[0].answer
    assert answer.locator(".span .name").all_inner_texts() == ["clip-0", "clip-3"]
    assert answer.locator(".evidence").count() == len(ask(stage, ["clip-0", "clip-3"], "what moves?")[0].evidence)
    answer.locator(".span").filter(has_text="clip-3").click()
    sync_api.expect(page.locator("#title")).to_have_text("clip-3", timeout=PATIENCE)


def test_what_goes_wrong_is_said_and_the_question_stays(page: sync_api.Page) -> None:
    open_video(page, "clip-0")
    page.fill("#from", "90")
    page.press("#from", "Tab")
    answer = put_question(page, "what moves?")
    assert "has no segment from 90 s" in answer.locator(".error").inner_text()
    assert page.input_value("#question") == "what moves?"
    page.get_by_role("button", name="Whole video").click()
    assert put_question(page, "what moves?").locator(".took").count() == 1


def test_nothing_that_a_name_or_a_text_holds_becomes_markup(page: sync_api.Page) -> None:
    open_video(page, hostile_id())
    markup = "<img src=x onerror=\"alert('question')\"><script>alert(1)</script>"
    put_question(page, markup)
    assert page.locator(".question").inner_text() == markup
    assert page.locator("#talk img, #talk script, #about img, #title *").count() == 0
    page.goto(page.url.partition("#")[0] + "#/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    sync_api.expect(page.locator("#failure h2")).to_have_text("<img src=x onerror=alert(1)>", timeout=PATIENCE)


def test_a_picture_of_it(page: sync_api.Page, tmp_path: Path) -> None:
    """The one in the README, where VOCO_PICTURE names its file."""
    page.fill("#search", "clip")
    sync_api.expect(page.locator("#count")).to_have_text("4 of 6 videos", timeout=PATIENCE)
    open_video(page, "clip-0")
    put_question(page, "what moves?")
    page.fill("#from", "1")
    page.fill("#to", "2.5")
    page.press("#to", "Tab")
    page.locator("#videos li").filter(has_text="clip-3").hover()
    page.get_by_role("button", name="Ask about clip-3 too").click()
    put_question(page, "how many objects are there?")
    sync_api.expect(page.locator("#player")).to_have_js_property("readyState", 4, timeout=PATIENCE)
    for image in page.locator("#videos img, #strip").all():
        sync_api.expect(image).to_have_js_property("complete", True, timeout=PATIENCE)
    path = Path(os.environ.get("VOCO_PICTURE", tmp_path / "page.png"))
    page.screenshot(path=path)
    assert len(Image.open(path).convert("RGB").getcolors(1 << 20)) > 1000, "pictures, not only text"


def test_a_narrow_screen_shows_one_thing_at_a_time(page: sync_api.Page) -> None:
    page.set_viewport_size({"width": 380, "height": 720})
    assert page.locator("#stage").is_hidden()
    open_video(page, "clip-2")
    assert page.locator("#shelf").is_hidden()
    assert put_question(page, "what moves?").locator(".took").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.locator("#back").click()
    assert page.locator("#shelf").is_visible()


def test_the_page_asks_for_the_token(browser: sync_api.Browser, shelf: Path) -> None:
    with serving(shelf, "--token", "a b&c", "--sources") as (_, address):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address.partition("#")[0])
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        sync_api.expect(page.locator("#loginerror")).not_to_be_empty(timeout=PATIENCE)
        page.fill("#token", "a b&c")
        page.press("#token", "Enter")
        page.locator("#videos li").first.wait_for()
        context.close()
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)  # as it was printed
        page.locator("#videos li").first.wait_for()
        assert "token" not in page.url
        open_video(page, "clip-1")  # whose pictures and file come with the cookie
        sync_api.expect(page.locator("#player")).to_have_js_property("readyState", 4, timeout=PATIENCE)
        assert put_question(page, "what moves?").locator(".took").count() == 1
        context.close()


@pytest.mark.slow
def test_a_growing_video_is_shown_as_it_grows(browser: sync_api.Browser, shelf: Path, tmp_path: Path) -> None:
    """Its edge moves, the last seconds can be asked about, and the answer tells the time of the day."""
    place = tmp_path / "live"
    store = open_store(place, "a", header=open_store(shelf).header)
    part = GrowingPart(
        video="door.2026-11-26T17", live="door", source="", started=1_795_712_400.5, fps=2.0, chunk_segments=8, gap=2.5
    )
    kv = open_store(shelf).read("clip-0")

    def grow() -> None:
        write(store, part, kv, np.arange(8.0)[:, None] / 2 + 4 * part.chunks)

    begin(store, part, claims.take(store, "door", "a test"))
    grow()
    with serving(place) as (_, url):
        page = browser.new_page(timezone_id="UTC", locale="en-GB")
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        sync_api.expect(page.locator("#videos .growing")).to_have_text("live", timeout=PATIENCE)
        open_video(page, "door.2026-11-26T17")
        sync_api.expect(page.locator("#length")).to_have_text("0:04", timeout=PATIENCE)
        assert "live · since 26/11/2026, 17:00:00" in page.locator("#facts").inner_text()
        assert "2.5 s are missing" in page.locator("#facts").inner_text()
        page.select_option("#last", "10")
        grow()
        grow()
        sync_api.expect(page.locator("#length")).to_have_text("0:12", timeout=PATIENCE)
        assert page.input_value("#from") == "2"
        answer = put_question(page, "how many objects are there?")
        assert "17:00:02 – 17:00:12" in answer.locator(".rests").first.inner_text()
        finish(store, part)
        sync_api.expect(page.locator("#lastof")).to_be_hidden(timeout=PATIENCE)
        page.close()
