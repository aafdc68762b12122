"""The page in a browser: it draws without a word in the console, asks the network for nothing, and works by keyboard."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from tests.report.records import HOSTILE, as_found, example
from tests.report.test_report_tasks import numbers

from bookkd.report import numbers_of, render

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium and chromedriver are not installed (apt-get install chromium chromium-driver)",
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser, path, width=1280):
    """Load a page and wait until its charts are drawn; return what the console and the network said meanwhile."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    end = time.monotonic() + 20
    while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.05)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return browser.get_log("browser"), [url for url in asked if not url.startswith("data:")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(numbers_of(as_found(example()))), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, path):
    opened(browser, path)
    return browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_loads_quietly_alone_and_without_a_sideways_scroll(browser, path, scheme, width):
    wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    console, asked = opened(browser, path, width)
    assert console == []
    assert asked == [path.as_uri()]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.querySelectorAll('.plot svg').length") == 12
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"
    assert dark is (scheme == "dark")


def test_ink_stands_out_from_the_page(browser, path):
    """Contrast of at least 4.5 for text and 3 for lines, in both schemes (WCAG 2.2, 1.4.3 and 1.4.11)."""
    for scheme in ("light", "dark"):
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
        opened(browser, path)
        names = ["panel", "ink", "soft", "link", *(f"s{place}" for place in range(1, 9)), "gain", "loss"]
        script = "const s = getComputedStyle(document.documentElement); return arguments[0].map(n => s.getPropertyValue('--' + n))"
        panel, *rest = browser.execute_script(script, names)
        for name, colour in zip(names[1:], rest, strict=True):
            assert contrast(panel, colour) >= (4.5 if name in ("ink", "soft", "link") else 3), (scheme, name)


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2.2 defines it."""

    def light(colour):
        parts = [int(colour.strip()[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def column(browser, title):
    script = """
        const table = document.querySelector('#arms table');
        const heads = [...table.tHead.rows[0].cells];
        const place = heads.findIndex((head) => head.textContent === arguments[0]);
        const sorted = heads.map((head) => head.getAttribute('aria-sort'));
        return [[...table.tBodies[0].rows].map((row) => row.cells[place].dataset.value), sorted[place], sorted.filter(Boolean).length];
    """
    return browser.execute_script(script, title)


def numeric(values):
    return [float(value) for value in values if value]


def test_a_click_on_a_head_sorts(page):
    from selenium.webdriver.common.by import By

    values, direction, _ = column(page, "accuracy, %")
    assert (numeric(values), direction) == (sorted(numeric(values), reverse=True), "descending")
    button = page.find_element(By.XPATH, "//*[@id='arms']//th[contains(., 'NLL')]/button")
    page.execute_script("arguments[0].click()", button)
    for expected, reverse in (("descending", True), ("ascending", False)):
        values, direction, sorted_columns = column(page, "NLL")
        assert (numeric(values), direction) == (sorted(numeric(values), reverse=reverse), expected)
        assert values[-1] == ""  # what is absent is last both ways
        assert sorted_columns == 1
        page.execute_script("arguments[0].click()", button)


def test_a_page_of_numbers_draws_every_chart_and_sorts(browser, tmp_path):
    from selenium.webdriver.common.by import By

    path = tmp_path / "numbers.html"
    path.write_text(render(numbers_of(as_found(numbers()))), encoding="utf-8")
    console, _ = opened(browser, path)
    assert console == []
    marks = """
        return [...document.querySelectorAll('.plot')].map(
            (plot) => [plot.classList.contains('empty'), plot.querySelectorAll('.role-mark path, .role-mark line').length]);
    """
    found = browser.execute_script(marks)
    assert len(found) == 4  # against size and latency, curves, cost
    assert all(not empty and count > 0 for empty, count in found)
    values, direction, _ = column(browser, "R²")
    assert (numeric(values), direction) == (sorted(numeric(values), reverse=True), "descending")
    for title in ("R²", "RMSE"):
        button = browser.find_element(By.XPATH, f"//*[@id='arms']//th[normalize-space(.)='{title}']/button")
        browser.execute_script("arguments[0].click()", button)
        values, direction, _ = column(browser, title)
        assert numeric(values) == sorted(numeric(values), reverse=direction == "descending")
    assert column(browser, "R²")[1] is None


HERE = """
    const here = document.activeElement;
    return [here.tagName, here.id, here.textContent.slice(0, 40), here.closest('#arms') !== null];
"""


def test_everything_is_reached_and_done_by_keyboard(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key):
        ActionChains(page).send_keys(key).perform()

    tags, names, heads = set(), [], []
    for _ in range(400):
        press(Keys.TAB)
        tag, name, text, in_arms = page.execute_script(HERE)
        if tag == "BODY":
            break
        tags.add(tag)
        names.append(name)
        if tag == "BUTTON" and in_arms and text == "student" and not heads:
            press(Keys.ENTER)
            heads.append(column(page, "student")[1])
        if name == "chart-accuracy-size":
            press(Keys.ARROW_RIGHT)
            reading = page.execute_script(
                "return document.activeElement.parentNode.querySelector('.reading').textContent"
            )
            assert reading.endswith("parameters")
    plots = page.execute_script("return [...document.querySelectorAll('.plot')].map((plot) => plot.id)")
    assert [name for name in names if name in plots] == plots
    assert heads == ["ascending"]
    assert tags >= {"A", "BUTTON", "SELECT", "SUMMARY"}


def test_every_chart_says_what_it_shows_and_says_it_anew_when_asked(page):
    labels = page.execute_script(
        "return [...document.querySelectorAll('.plot')].map((plot) => plot.getAttribute('aria-label'))"
    )
    assert len(labels) == 12
    assert all(any(letter.isdigit() for letter in label) for label in labels)
    script = """
        const select = document.querySelector('#classes select');
        select.value = arguments[0];
        select.dispatchEvent(new Event('change'));
    """
    page.execute_script(script, "dkd / resnet8")
    end = time.monotonic() + 10
    label = "return document.getElementById('chart-confusion-teacher').getAttribute('aria-label')"
    while "dkd / resnet8" not in page.execute_script(label):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "dkd / resnet8" in page.execute_script(
        "return document.getElementById('chart-classes').getAttribute('aria-label')"
    )
    marks = "return document.querySelectorAll('#chart-classes .mark-rect path').length"
    assert page.execute_script(marks) == 10


def test_hostile_names_run_nothing(browser, hostile, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(render(hostile), encoding="utf-8")
    console, asked = opened(browser, path)
    assert console == []
    assert asked == [path.as_uri()]
    assert " ".join(HOSTILE.split()) in browser.execute_script("return document.body.innerText.replace(/\\s+/g, ' ')")
