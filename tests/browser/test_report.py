"""The report in real Chromium: read, sorted, filtered and listened to, from a file, with the network forbidden.

REPORT_SCREENSHOTS names a folder for pictures; REPORT names a report of a real run to look at as well.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.api.browser import CHROMEDRIVER, CHROMIUM, chromium

pytest.importorskip("torch", reason="needs the trainer's environment")

from tests.unit.trainer.reported import HOSTILE, SENTENCES, context, left_by_steps, report_of, rows

pytestmark = [
    pytest.mark.browser,
    pytest.mark.trainer,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Debian's chromium and chromium-driver"),
]
TAB, ENTER, SPACE = "\ue004", "\ue007", " "
SHOWN = "return [...document.querySelectorAll('#sentences > li')].filter((one) => !one.hidden).map((one) => Number(one.dataset.row))"


@pytest.fixture
async def browser():
    async with chromium() as made:
        await made.media()
        yield made


@pytest.fixture
async def opened(browser, tmp_path):
    """The browser with a report of five sentences and their recordings."""
    html, _ = report_of(tmp_path, left_by_steps(tmp_path, rows()), context())
    await show(browser, tmp_path, html)
    return browser


async def show(browser, folder: Path, html: str) -> None:
    page = folder / "shown.html"
    page.write_text(html, encoding="utf-8")
    await browser.go(page.as_uri())


async def choose(browser, menu: str, value: str) -> list[int]:
    """Choose as a person does; the rows that are shown then."""
    await browser.run(
        "const [menu, value] = arguments; const one = document.getElementById(menu); one.value = value;"
        "one.dispatchEvent(new Event('change', {bubbles: true}))",
        menu,
        value,
    )
    return await browser.run(SHOWN)


async def test_a_person_sorts_and_filters_the_sentences(opened):
    assert (await opened.run(SHOWN))[:2] == [3, 1], "the worst come first"
    assert await choose(opened, "order", "given") == [0, 1, 2, 3, 4]
    assert (await choose(opened, "order", "gain"))[0] == 2
    assert (await choose(opened, "order", "loss"))[0] == 3
    assert sorted(await choose(opened, "kind", "better")) == [0, 2]
    assert sorted(await choose(opened, "kind", "worse")) == [1, 3]
    assert sorted(await choose(opened, "kind", "right")) == [0, 2, 4]
    assert await choose(opened, "of", "general") == [4]
    assert await choose(opened, "of", "unseen") == [2]
    await choose(opened, "kind", "all")
    await choose(opened, "of", "all")
    await opened.type("#search", "METAL ZONE")
    assert await opened.run(SHOWN) == [0]
    assert "1 of 5 sentences" in await opened.text()
    await opened.type("#search", " nothing of the kind")
    assert "No sentence fits." in await opened.text()
    assert await opened.complaints() == []


async def test_a_recording_plays_at_the_press_of_a_key_and_only_one_at_a_time(opened):
    await opened.run("document.querySelector('button.play').focus()")
    await opened.keys(ENTER)
    playing = "return [...document.querySelectorAll('audio')].map((one) => !one.paused && one.currentTime > 0)"
    async with asyncio.timeout(20):
        while not any(await opened.run(playing)):
            await asyncio.sleep(0.02)
    lengths = await opened.run("return [...document.querySelectorAll('audio')].map((one) => one.duration)")
    assert lengths[0] == pytest.approx(1.0, abs=0.2)
    await opened.run("document.querySelectorAll('button.play')[1].click()")
    async with asyncio.timeout(20):
        while not (await opened.run(playing))[1]:
            await asyncio.sleep(0.02)
    assert not (await opened.run(playing))[0]
    assert await opened.complaints() == []


async def test_everything_can_be_reached_with_the_keyboard(opened):
    seen = []
    for _ in range(40):
        await opened.keys(TAB)
        seen.append(
            await opened.run("const one = document.activeElement; return one.id || one.textContent.slice(0, 20)")
        )
    assert seen[0] == "To the report"
    for control in ("order", "kind", "of", "search", "All figures", "▶ listen"):
        assert control in seen, seen


async def test_hostile_texts_run_nothing_and_ask_nobody(browser, tmp_path):
    said = [(HOSTILE.lower(), HOSTILE, HOSTILE[::-1], HOSTILE, "test"), *SENTENCES[1:]]
    places = left_by_steps(tmp_path, rows(said, text=HOSTILE, file=HOSTILE))
    html, _ = report_of(tmp_path, places, context(model_name=HOSTILE, gate_sentence=HOSTILE))
    await show(browser, tmp_path, html)
    assert await browser.run("return document.title") != "owned"
    assert await browser.run("return document.querySelectorAll('img, script:not(:last-child), iframe').length") == 0
    assert (
        await browser.run(
            "return performance.getEntriesByType('resource').filter((one) => !one.name.startsWith('data:')).length"
        )
        == 0
    )
    assert await browser.complaints() == [], "the policy had to refuse something"
    assert len(await browser.run(SHOWN)) == 5


async def test_the_policy_refuses_what_a_slip_of_ours_would_let_through(browser, tmp_path):
    html, _ = report_of(tmp_path, left_by_steps(tmp_path, rows()), context())
    slipped = "<script>document.title='owned'</script><img src='https://example.org/x.png'><p onclick='1'>"
    await show(browser, tmp_path, html.replace("</main>", slipped + "</main>"))
    assert await browser.run("return document.title") != "owned"
    assert await browser.complaints(), "the browser tells what it refused"


async def test_the_page_reads_well_without_its_script(browser, tmp_path):
    html, _ = report_of(tmp_path, left_by_steps(tmp_path, rows()), context())
    await show(browser, tmp_path, html.replace("script-src", "img-src"))
    assert len(await browser.run(SHOWN)) == 5
    assert await browser.run("return document.getElementById('choices').hidden")
    assert await browser.run(
        "return [...document.querySelectorAll('audio')].every((one) => one.controls && one.checkVisibility())"
    )


async def test_nothing_is_wider_than_a_phone_in_light_or_dark(browser, tmp_path):
    folder = Path(os.environ.get("REPORT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    real = os.environ.get("REPORT")
    html = (
        Path(real).read_text(encoding="utf-8")
        if real
        else report_of(tmp_path, left_by_steps(tmp_path, rows()), context())[0]
    )
    await show(browser, tmp_path, html)
    backgrounds = set()
    for dark, width in ((False, 1100), (True, 1100), (False, 390), (True, 390)):
        await browser.media(dark=dark, width=width)
        assert await browser.run("return document.documentElement.scrollWidth - innerWidth") == 0
        backgrounds.add(await browser.run("return getComputedStyle(document.documentElement).backgroundColor"))
        tall = int(await browser.run("return document.documentElement.scrollHeight"))
        await browser.media(dark=dark, width=width, height=min(tall, 6000))
        await browser.screenshot(folder / f"report-{'dark' if dark else 'light'}-{width}.png")
    assert len(backgrounds) == 2
