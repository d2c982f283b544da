"""The watch page in a real browser, while a run goes on."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import MakeRun, eval_line, train_line, write_lines
from test_watch_server import serving

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


class Browser:
    """A page, what it complained of, and what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page, self.complaints, self.asked = page, [], []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def path(self) -> str:
        """The curve of the training loss."""
        return str(self.page.locator(".plot").first.locator("path.line.c0").last.get_attribute("d"))

    def place(self) -> float:
        """How far down the window the first chart is."""
        return float(self.page.locator(".plot").first.bounding_box()["y"])

    def until(self, done: Callable[[], bool]) -> None:
        """Waits; not in the page, whose policy lets no foreign script run."""
        for _ in range(400):
            if done():
                return
            self.page.wait_for_timeout(25)
        raise AssertionError("it did not come")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    context = chromium.new_context(viewport={"width": 1000, "height": 800})
    found = Browser(context.new_page())
    # the page asks every two seconds: a test has not the time
    found.page.add_init_script("const wait = setTimeout; setTimeout = (f, ms, ...rest) => wait(f, ms / 20, ...rest);")
    yield found
    context.close()
    assert found.complaints == []
    assert all(url.startswith("http://127.0.0.1:") for url in found.asked), found.asked


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_curves_move_while_the_run_goes_on_and_the_reader_keeps_his_place(make_run: MakeRun, browser: Browser) -> None:
    folder = make_run(metrics=[train_line(step, 5 - step / 50) for step in range(1, 41)])
    page = browser.page
    with serving(folder) as server:
        page.goto(f"http://127.0.0.1:{server.server_address[1]}")
        page.get_by_role("button", name="Steps").click()
        page.locator("label:has-text('Smoothing') input").fill("0")
        page.locator("figure .log-y").first.click()
        page.locator("#slider input").fill("0")
        page.locator("#configuration summary").last.click()
        page.locator(".plot").first.hover()
        before, tip, place = browser.path(), page.locator(".tip").first.inner_text(), browser.place()
        assert "step" in tip and "training" in tip

        def grow() -> None:
            for step in range(41, 101):
                append(folder / "metrics.jsonl", train_line(step, 5 - step / 50))
            append(folder / "metrics.jsonl", eval_line(100, 3.1))
            append(folder / "samples.jsonl", {"step": 300, "prompt": "", "texts": ["a new sample"]})

        thread = threading.Thread(target=grow)
        thread.start()
        browser.until(lambda: browser.path() != before)
        thread.join()
        page.locator("#samples article", has_text="a new sample").wait_for(state="attached")
        page.get_by_role("button", name="validation").wait_for()
        assert page.locator("#slider output").inner_text() == "step 100"  # where the reader had put it
        assert page.get_by_role("button", name="Steps").get_attribute("aria-pressed") == "true"
        assert page.locator("figure .log-y").first.get_attribute("aria-pressed") == "true"
        assert page.locator("label:has-text('Smoothing') input").input_value() == "0"
        assert page.locator("#configuration details").last.get_attribute("open") is not None
        assert abs(browser.place() - place) < 5  # whatever became longer above it
        page.locator(".plot").first.hover()
        assert "validation" in page.locator(".tip").first.inner_text()
        page.goto("about:blank")


def test_a_run_that_begins_and_one_that_goes_away(make_run: MakeRun, tmp_path: Path, browser: Browser) -> None:
    page = browser.page
    with serving(tmp_path / "runs") as server:
        page.goto(f"http://127.0.0.1:{server.server_address[1]}")
        page.get_by_text("the folder does not exist yet").wait_for()
        make_run("runs/one", metrics=[])
        page.get_by_text("No metrics yet").wait_for()
        write_lines(tmp_path / "runs" / "one" / "metrics.jsonl", [train_line(step, 3.0) for step in (1, 2, 3)])
        page.locator("figure", has_text="Loss").first.wait_for()
        make_run("runs/two")
        page.get_by_role("heading", name="2 runs").wait_for()
        assert page.locator(".strip .run").count() == 2
        shutil.rmtree(tmp_path / "runs" / "one")
        page.get_by_role("heading", name="two").first.wait_for()
    page.get_by_text("does not answer any more").wait_for()
    page.goto("about:blank")
    browser.complaints.clear()  # that it could not reach the server


@pytest.mark.skipif(
    "OVERNIGHT_SCREENSHOTS" not in os.environ,
    reason="only to look at: a folder in OVERNIGHT_SCREENSHOTS, and a run to show in OVERNIGHT_SCREENSHOTS_RUN",
)
def test_screenshots(make_run: MakeRun, chromium: Any) -> None:
    run = Path(os.environ.get("OVERNIGHT_SCREENSHOTS_RUN") or make_run("first"))
    with serving(run) as server:
        for name, options in (
            ("watch", {"viewport": {"width": 1100, "height": 1080}}),
            ("watch-dark", {"viewport": {"width": 1100, "height": 900}, "color_scheme": "dark"}),
            ("watch-phone", {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}),
        ):
            context = chromium.new_context(**options)
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}")
            page.locator(".plot svg.live").first.wait_for()
            page.screenshot(path=Path(os.environ["OVERNIGHT_SCREENSHOTS"]) / f"{name}.png")
            context.close()
