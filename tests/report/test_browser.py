"""The report in a real browser: nothing is asked of the network, nothing goes wrong, and hovering reads the values."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_runs import morning_run

from overnight.report import write_report
from overnight.report.page import page
from overnight.report.run_data import Reference, read_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="needs Chromium and playwright"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    first, second = morning_run(folder / "first", steps=400), morning_run(folder / "second", seed=1, steps=400)
    run = read_run(first)
    at = np.array([0.0, 200.0, 400.0])
    run.reference = Reference("5 seeds", at, at * 0 + 3.0, at * 0 + 4.0, "inside", "Inside the band.")
    (folder / "one.html").write_text(page([run]))
    write_report([first, second], folder / "two.html")
    return {"one": folder / "one.html", "two": folder / "two.html"}


@contextmanager
def shown(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    """The report in a new window; fails where the page complains or asks for anything but itself."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: None if request.url == path.as_uri() else wrong.append(request.url))
    opened.goto(path.as_uri())
    yield opened
    context.close()
    assert wrong == []


def hover(opened: Page, chart: str, share: float) -> str:
    """Puts the pointer at a share of a chart's width; what the page writes beside it."""
    plot = opened.locator(f'[data-chart="{chart}"] .plot')
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    opened.mouse.move(box["x"] + 52 + share * (box["width"] - 66), box["y"] + 80)
    return " ".join(opened.locator(f'[data-chart="{chart}"] .tip').inner_text().split())


def test_hovering_reads_the_values(browser: Browser, reports: dict[str, Path]) -> None:
    run = read_run(reports["one"].parent / "first")
    with shown(browser, reports["one"]) as opened:
        told = hover(opened, "hellaswag", 0.5)
        at_half = next(one for one in run.tasks if one.step == 200)
        assert told.startswith("step 200 · 104.9M tokens · ") and "epoch 0.85" in told
        assert f"acc_norm {at_half.metrics['acc_norm']:.5g} ± 0.0046" in told
        told = hover(opened, "loss", 1.0)
        assert told.startswith("step 400") and "5 seeds 3 to 4" in told
        for words, name in (("training ", "train.loss"), (" validation ", "eval.val_loss")):
            assert float(told.split(words)[1].split()[0]) == pytest.approx(run.series[name].value[-1], abs=1e-4)
        assert told.split(" validation ")[1].split()[1:3] == ["±", "0.012"]
        assert opened.locator('[data-chart="loss"] .live .band').count() == 1
        opened.mouse.move(5, 5)
        assert opened.locator(".tip:visible").count() == 0
        opened.locator('[data-chart="loss"] .plot').focus()
        opened.keyboard.press("ArrowRight")
        assert "step 10 " in opened.locator('[data-chart="loss"] .tip').inner_text()


def test_axes_and_keys(browser: Browser, reports: dict[str, Path]) -> None:
    with shown(browser, reports["two"]) as opened:
        ticks = opened.locator('[data-chart="hellaswag"] .tick')
        assert ticks.last.text_content() == "tokens" and "100M" in ticks.all_text_contents()
        opened.get_by_role("button", name="Steps").click()
        assert ticks.last.text_content() == "steps" and "300" in ticks.all_text_contents()
        opened.get_by_role("button", name="Time").click()
        assert ticks.last.text_content() == "time" and "40m" in ticks.all_text_contents()
        curves = opened.locator('[data-chart="hellaswag"] .line')
        assert curves.count() == 2
        opened.locator('.key[data-key="run:1"]').click()
        assert curves.count() == 1
        told = hover(opened, "hellaswag", 1.0)
        assert "first" in told and "second" not in told


def test_newer_data_moves_the_curves(browser: Browser, reports: dict[str, Path]) -> None:
    """What a page that follows a run does."""
    with shown(browser, reports["one"]) as opened:
        path = '[data-chart="loss"] .live .line'
        before = opened.locator(path).first.get_attribute("d")
        more = """() => {
            const data = JSON.parse(document.getElementById("data").textContent);
            const live = startReport(data);
            const longer = structuredClone(data), other = structuredClone(data);
            const [line] = longer.charts.find((chart) => chart.id === "loss").lines;
            line.x.push(800); line.y.push(2);
            const clock = longer.runs[0].clock;
            clock.step.push(800); clock.tokens.push(800 * 524288); clock.seconds.push(6400); clock.epochs.push(2);
            other.charts.pop();
            return [live.update(longer), live.update(other)];
        }"""
        assert opened.evaluate(more) == [True, False]
        assert opened.locator(path).first.get_attribute("d") != before


def test_without_javascript_the_curves_are_there(browser: Browser, reports: dict[str, Path]) -> None:
    with shown(browser, reports["one"], java_script_enabled=False) as opened:
        svg = opened.locator('[data-chart="hellaswag"] svg')
        assert svg.is_visible() and svg.locator(".line").count() == 1 and svg.locator(".whisker").count() == 1
        assert {"chance", "GPT-2 124M", "GPT-3 124M"} <= set(svg.locator("text.level").all_text_contents())
        assert opened.locator('[data-chart="loss"] .band').count() == 1
        assert not opened.locator("#tools").is_visible()
        assert "above GPT-2 124M's 0.2955" in opened.locator("header").inner_text()
        assert opened.locator(".sample:visible").count() == 10  # all of them, where no slider chooses


def luminance(color: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_text_and_curves_stand_out(browser: Browser, reports: dict[str, Path], scheme: Any, media: Any) -> None:
    with shown(browser, reports["one"], color_scheme=scheme) as opened:
        opened.emulate_media(media=media)
        style = "(query, name) => getComputedStyle(document.querySelector(query))[name]"
        back, text, line = (
            luminance(opened.evaluate(f"() => ({style})('{query}', '{name}')"))
            for query, name in (("body", "backgroundColor"), ("body", "color"), (".line", "stroke"))
        )
        paper = scheme == "light" or media == "print"
        assert (back > 0.9 and text < 0.2 and line < 0.5) if paper else (back < 0.1 and text > 0.8 and line > 0.35)


def test_a_phone_scrolls_in_one_direction(browser: Browser, reports: dict[str, Path]) -> None:
    for script in (True, False):
        with shown(browser, reports["two"], java_script_enabled=script) as opened:
            opened.set_viewport_size({"width": 390, "height": 800})
            right = max(
                box["x"] + box["width"]
                for figure in opened.locator("figure, .tiles, nav, section, header").all()
                if (box := figure.bounding_box())
            )
            assert right <= 390


@pytest.mark.skipif(
    "OVERNIGHT_SCREENSHOTS" not in os.environ,
    reason="only to look at: a folder in OVERNIGHT_SCREENSHOTS, and a run to show in OVERNIGHT_SCREENSHOTS_RUN",
)
def test_screenshots(browser: Browser, reports: dict[str, Path], tmp_path: Path) -> None:
    run = os.environ.get("OVERNIGHT_SCREENSHOTS_RUN")
    path = write_report([Path(run)], tmp_path / "report.html") if run else reports["one"]
    with shown(browser, path) as opened:
        opened.set_viewport_size({"width": 1100, "height": 1000})
        opened.locator(".plot svg.live").first.wait_for()
        opened.screenshot(path=Path(os.environ["OVERNIGHT_SCREENSHOTS"]) / "report.png")
