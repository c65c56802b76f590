"""The console in real Chromium: the whole way, and the unhappy ones.

CONSOLE_SCREENSHOTS names a folder for pictures of every view.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import uuid4

import pytest

from tests.api.browser import CHROMEDRIVER, CHROMIUM, chromium
from worker.api import keys
from worker.store.database import queries

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Debian's chromium and chromium-driver"),
]
RUNS = queries("runs")
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"


@pytest.fixture
async def browser():
    async with chromium() as made:
        await made.media()
        yield made


async def picture(browser, name):
    folder = os.environ.get("CONSOLE_SCREENSHOTS")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for dark, width in ((False, 1100), (True, 390)):
        await browser.media(dark=dark, width=width)
        await browser.screenshot(Path(folder) / f"{name}-{'dark-phone' if dark else 'light-wide'}.png")
    await browser.media()


async def sign_in(browser, live, secret):
    await browser.go(live.url + "/")
    await browser.type("#key", secret + ENTER)
    await browser.find("h1", "Models")


def speech(folder: Path, make_wav, name="visit", seconds=61) -> list[Path]:
    (folder / f"{name}.wav").write_bytes(make_wav(seconds))
    (folder / f"{name}.txt").write_text("the patient takes metoprolol in the morning")
    return [folder / f"{name}.wav", folder / f"{name}.txt"]


async def test_a_person_creates_uploads_trains_watches_and_deletes(live, customer, browser, tmp_path, make_wav):
    await browser.go(live.url + "/")
    await browser.find("h1", "Sign in")
    await picture(browser, "1-sign-in")
    await browser.type("#key", customer.key.secret + ENTER)
    await browser.find("p", "No models yet")
    await browser.find("select[name=base]", "English")
    await browser.type("input[name=name]", "Cardiology <b>dictation</b>")
    await browser.click("button", "Create")
    await browser.find("h1", "Cardiology <b>dictation</b>")
    await browser.find("span", "Training needs 60 s")

    (tmp_path / "broken.flac").write_bytes(b"no audio")
    await browser.choose_files("input[type=file]", [*speech(tmp_path, make_wav), tmp_path / "broken.flac"])
    await browser.find("p", "2 of 3 files are stored")
    await browser.find("li", "broken.flac: The file is not audio")
    await browser.find("td span", "ready")
    await picture(browser, "2-data")

    await browser.click("button", "Train")
    await browser.find("h2", "Training: waiting")
    rows = await live.database.fetch(RUNS["claim_runs"], "worker-1", 1, 60.0, [uuid4()])
    run = rows[0]
    curve = {"curve": [[step, "loss", 3 / (1 + step / 20)] for step in range(0, 200, 5)]}
    await live.database.execute(RUNS["record_progress"], [run["id"]], [1], ["train"], [42.0], [95.0], [curve])
    log_key = f"runs/{run['id']}/1/log.txt"
    await live.storage.put_bytes(log_key, b"step 1 of 200\nstep 2 of 200\n")
    await live.database.fetch(RUNS["record_log"], run["id"], 1, log_key)
    await browser.find("h2", "Training")
    await browser.find("dd", "42 %")
    await browser.find("dd", "1 min 35 s")
    await browser.find("figcaption", "loss 3.00 at step 0")
    await browser.click("button", "Log")
    await browser.find("pre", "step 2 of 200")
    await picture(browser, "3-running")

    figures = {"wer_base": 0.55, "wer_custom": 0.12}
    move = {
        "run_id": str(run["id"]), "attempt": 1, "from_status": 3, "to_status": 4, "transition_id": str(uuid4()),
        "figures": figures, "gate": "published", "version_address": "runs/x", "version_sha256": "0" * 64,
        "version_figures": figures,
    }  # fmt: skip
    await live.database.fetch(RUNS["settle_runs"], [move])
    await browser.find("p", "makes fewer errors. It is in use")
    await browser.find("dd", "12.0 %")
    await browser.find("b", "in use")
    await picture(browser, "4-finished")
    await browser.click("button", "Report")
    await browser.find("dialog iframe")
    await picture(browser, "5-report")
    await browser.click("button", "Close")

    await browser.click("button", "Delete")
    await browser.find("dialog", "go for good")
    assert await browser.focused() == "Keep it"
    await picture(browser, "6-delete")
    await browser.click("dialog button", "Delete for good")
    await browser.find("p", "No models yet")
    assert await browser.complaints() == []


async def test_the_list_is_searched_sorted_and_paged(live, customer, browser):
    for number in range(30):
        await customer.model(f"Model {number:02d}")
    await sign_in(browser, live, customer.key.secret)
    await browser.find("a", "Model 29")
    await browser.find("span", "1 to 25 of 30")
    await picture(browser, "7-list")
    await browser.click("button", "Later")
    await browser.find("a", "Model 00")
    await browser.type("input[type=search]", "el 1")
    await browser.find("a", "Model 19")
    assert "Model 09" not in await browser.text()
    await browser.run(
        "const s = document.querySelectorAll('select')[1]; s.value = 'asc'; s.dispatchEvent(new Event('change'))"
    )
    await browser.find("tbody tr:first-child a", "Model 10")


async def test_a_run_is_cancelled_with_the_keyboard_alone(live, customer, browser):
    model = await customer.trainable_model()
    await sign_in(browser, live, customer.key.secret)
    await browser.find("a", model["name"])

    async def tab_to(text):
        for _ in range(40):
            if text in await browser.focused():
                return
            await browser.keys(TAB)
        pytest.fail(f"no way to {text!r} with the keyboard")

    await tab_to(model["name"])
    await browser.keys(ENTER)
    await browser.find("button:enabled", "Train")
    await tab_to("Train")
    await browser.keys(ENTER)
    await browser.find("h2", "Training: waiting")
    await tab_to("Cancel the run")
    await browser.keys(ENTER)
    await browser.find("dialog", "learned so far is lost")
    assert await browser.focused() == "Keep it"
    await browser.keys(ESCAPE)
    await tab_to("Cancel the run")
    await browser.keys(ENTER)
    await browser.keys(TAB, ENTER)
    await browser.find("h2", "Training: not running")


async def test_a_wrong_and_a_revoked_key_lead_back_to_the_sign_in(live, customer, browser):
    await browser.go(live.url + "/")
    await browser.type("#key", "stk_wrong" + ENTER)
    await browser.find("p[role=alert]", "This key is not valid.")
    await sign_in(browser, live, customer.key.secret)
    await keys.revoke(live.keys, customer.key.id)
    await browser.run("location.hash = '#/models/1'")
    await browser.find("p[role=alert]", "not valid any more")
    assert await browser.run("return sessionStorage.length") == 0


async def test_a_model_that_another_tab_deletes_is_gone_here_at_once(live, customer, browser):
    model = await customer.model()
    await sign_in(browser, live, customer.key.secret)
    await browser.click("a", model["name"])
    await browser.find("button", "Delete")
    await customer.http.delete(f"/custom_models/{model['id']}")
    await browser.find("h1", "No such model")


async def test_a_service_that_cannot_be_reached_is_said_and_work_goes_on_afterwards(live, customer, browser):
    model = await customer.trainable_model()
    await sign_in(browser, live, customer.key.secret)
    await browser.click("a", model["name"])
    await browser.find("button:enabled", "Train")
    await browser.offline(offline=True)
    await browser.click("button", "Train")
    await browser.find("#said", "cannot be reached")
    await browser.offline(offline=False)
    await browser.click("button", "Train")
    await browser.find("h2", "Training: waiting")


async def test_a_failed_run_says_why_and_a_reader_cannot_change_anything(live, customer, browser):
    model = await customer.trainable_model()
    await customer.http.post(f"/custom_models/{model['id']}/run")
    run = (await live.database.fetch(RUNS["claim_runs"], "worker-1", 1, 60.0, [uuid4()]))[0]
    move = {
        "run_id": str(run["id"]), "attempt": 1, "from_status": 3, "to_status": 5, "transition_id": str(uuid4()),
        "failure_class": "data", "failure_code": "too_little_data",
        "failure_reason": "Only 12 s of audio are usable; a run needs 60 s. 3 files are silent.",
    }  # fmt: skip
    await live.database.fetch(RUNS["settle_runs"], [move])
    reader = await live.key(customer.id, "reader")
    await sign_in(browser, live, reader.secret)
    await browser.click("a", model["name"])
    await browser.find("p", "3 files are silent")
    await picture(browser, "8-failed-for-a-reader")
    page = await browser.text()
    for button in ("Train\n", "Delete", "Remove", "Rename"):
        assert button not in page
    assert (
        json.loads(await browser.run("return JSON.stringify([...document.querySelectorAll('input[type=file]')])")) == []
    )


async def test_nothing_overflows_a_phone(live, customer, browser, tmp_path, make_wav):
    model = await customer.model("A very long name " + "without_any_space" * 8)
    await customer.feed(model["id"], name="a-long-file-name-" + "x" * 150)
    await browser.media(width=360)
    await sign_in(browser, live, customer.key.secret)
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    await browser.find("a", "A very long name")
    assert await browser.run(wide) == 0
    await browser.click("a", "A very long name")
    await browser.find("td span", "ready")
    assert await browser.run(wide) == 0
