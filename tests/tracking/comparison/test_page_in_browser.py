"""The page in a real browser, from a file, without a network."""

import os
import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.comparison.page import comparison_page
from lightning_flatness.tracking.runs import Run
from tests.tracking.comparison.made_runs import HOSTILE, hostile_runs, six_runs

pytestmark = pytest.mark.slow
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
ALARMED = "3"
PATIENCE = 30_000
"""Milliseconds; the machine may be busy with other tests."""
VISIBLE = """uid => [...document.querySelectorAll('.js-plotly-plot')]
    .flatMap(div => div.data.filter(trace => trace.uid === uid)).map(trace => trace.visible)"""
"""Of a run, in every drawn figure that has it."""


@pytest.fixture(scope="module")
def browser():
    """One browser for this file: while it runs, no other test could start an event loop of its own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "chromium is not installed: apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        chrome = playwright.chromium.launch(executable_path=chromium, args=flags, timeout=PATIENCE)
        yield chrome
        chrome.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def six(folder):
    return written(folder / "six.html", comparison_page(six_runs()))


def written(path, page):
    path.write_bytes(page.encode("utf-8", "replace"))
    return path


@contextmanager
def opened(browser, path, **options):
    """The page, which must neither complain nor ask for anything."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    try:
        tab.goto(path.as_uri())
        yield tab
        assert complaints == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    finally:
        context.close()


def draw(tab, *sections):
    """Scroll to sections until their first figure is drawn."""
    for section in sections:
        tab.locator(f"#{section}").evaluate("section => section.scrollIntoView({behavior: 'instant'})")
        tab.wait_for_selector(f"#{section} .js-plotly-plot .main-svg")


def wait_until_all(tab, uid, *, visible):
    """Wait until every drawn figure that has a run shows it, or none does."""
    tab.wait_for_function(f"([uid, visible]) => ({VISIBLE})(uid).every(shown => shown === visible)", arg=[uid, visible])


def column(tab, number):
    """Values of a column of the table, from top to bottom."""
    cells = tab.locator(f"#table tbody tr > :nth-child({number + 1})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.value ?? null)")


def test_opens_quietly_and_draws_every_section(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "scatter", "flatness", "bound", "attack", "masking", "trajectory", "scaling", "own")
        assert tab.locator("#alarms .alarm h3").inner_text() == "⚠ head × 50: do not trust its robustness"
        box = tab.locator("#alarms .alarm").bounding_box()
        tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        assert box is not None
        assert tab.locator("#alarms .alarm").bounding_box()["y"] < 250


def test_drawn_numbers_are_those_logged(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "flatness")
        drawn = tab.locator("#flatness .js-plotly-plot").first.evaluate("div => div.data.map(t => [...t.y])")
    assert drawn == [[row[keys.RELATIVE_FLATNESS] for row in run.epochs] for run in six_runs()]


def test_alarmed_run_is_a_red_cross_in_the_scatter(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "scatter")
        marks = tab.locator("#scatters .js-plotly-plot").first.evaluate(
            "div => Object.fromEntries(div.data.map(t => [t.uid, [t.marker.symbol, t.marker.color]]))"
        )
    symbol, colour = marks.pop(ALARMED)
    assert symbol == "x-thin"
    assert colour not in {other for _, other in marks.values()}
    assert all(other != "x-thin" for other, _ in marks.values())


def test_table_sorts_by_click_and_keyboard(browser, six):
    with opened(browser, six) as tab:
        head = tab.locator("#table thead tr").nth(1).locator("th").first
        head.locator("button").click()
        values = [float(value) for value in column(tab, 1)]
        assert values == sorted(values)
        assert head.get_attribute("aria-sort") == "ascending"
        head.locator("button").focus()
        tab.keyboard.press("Enter")
        assert [float(value) for value in column(tab, 1)] == sorted(values, reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        tab.locator("#table .corner button").focus()
        tab.keyboard.press("Space")
        assert column(tab, 0) == sorted(run.name for run in six_runs())
        assert head.get_attribute("aria-sort") is None


def test_cells_without_a_number_stay_last(browser, folder):
    with opened(browser, written(folder / "hostile.html", comparison_page(hostile_runs()))) as tab:
        button = tab.locator("#table thead tr").nth(1).locator("th button").first
        for _ in range(2):
            button.click()
            assert column(tab, 1)[-2:] in (["nan", None], [None, "nan"])


def test_switch_hides_a_run_in_every_figure(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "scatter", "flatness", "trajectory", "scaling")
        assert False not in tab.evaluate(VISIBLE, ALARMED)
        switch = tab.get_by_role("button", name="head × 50")
        switch.click()
        wait_until_all(tab, ALARMED, visible=False)
        assert switch.get_attribute("aria-pressed") == "false"
        assert True in tab.evaluate(VISIBLE, "0")
        draw(tab, "own")
        assert True not in tab.evaluate(VISIBLE, ALARMED)
        switch.press("Enter")
        wait_until_all(tab, ALARMED, visible=True)
        tab.get_by_role("button", name="None", exact=True).click()
        wait_until_all(tab, "0", visible=False)


def test_pointing_at_a_run_fades_the_others(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "flatness")
        tab.get_by_role("button", name="adversarial training").hover()
        plot = tab.locator("#flatness .js-plotly-plot").first
        faded = plot.locator(".scatterlayer .trace").evaluate_all("groups => groups.map(g => g.style.opacity)")
        assert sorted(faded) == ["", *["0.12"] * 5]


def test_axes_of_the_scatter_can_be_chosen(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "scatter")
        card = tab.locator("#scatters figure").first
        card.get_by_label("y axis").select_option("attack/linf_8_255_robust_accuracy")
        plot = card.locator(".js-plotly-plot")
        expected = [run.epochs[-1]["attack/linf_8_255_robust_accuracy"] for run in six_runs()]
        tab.wait_for_function(
            "([div, y]) => JSON.stringify(div.data.map(t => t.y[0])) === JSON.stringify(y)",
            arg=[plot.element_handle(), expected],
        )
        assert card.locator("h3").inner_text() == "L∞ 8/255, robust accuracy over relative flatness κ, mean"


def test_axes_of_shares_run_from_0_to_1_for_a_single_run(browser, folder):
    row = {"epoch": 0.0, keys.RELATIVE_FLATNESS: 2.0, "attack/linf_0_1_robust_accuracy": 0.628, "val_acc": 0.977}
    with opened(browser, written(folder / "one.html", comparison_page([Run("one", "", [row])]))) as tab:
        draw(tab, "scatter", "own")
        plots = tab.locator("#scatter .js-plotly-plot, #own .js-plotly-plot")
        assert plots.evaluate_all("divs => divs.map(div => div.layout.yaxis.range)") == [[-0.03, 1.03]] * 3


def test_logarithmic_axis_can_be_left(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "flatness")
        plot = tab.locator("#flatness .js-plotly-plot").first
        assert plot.evaluate("div => div.layout.yaxis.type") == "log"
        tab.get_by_role("button", name="Logarithmic axis: relative flatness κ, mean").click()
        tab.wait_for_function("div => div.layout.yaxis.type === 'linear'", arg=plot.element_handle())


def test_hostile_names_are_shown_as_they_are(browser, folder):
    name = " ".join(HOSTILE.split())
    with opened(browser, written(folder / "hostile.html", comparison_page(hostile_runs()))) as tab:
        draw(tab, "flatness", "own")
        assert tab.locator("img").count() == 0
        assert tab.locator("#alarms h3").inner_text() == f"⚠ {name}: do not trust its robustness"
        assert tab.locator(".chip span").first.inner_text() == name
        plot = tab.locator("#flatness .js-plotly-plot").first
        assert plot.evaluate("div => new Set(div.data[0].y).size") == 1
        # the curves lie upon one another: only the first stays, and is hovered over
        for other in ("twice (a)", "twice (b)"):
            tab.get_by_role("button", name=other).click()
        wait_until_all(tab, "2", visible=False)
        plot.evaluate("div => Plotly.Fx.hover(div, [{curveNumber: 0, pointNumber: 1}])")
        shown = plot.locator(".hoverlayer text").all_text_contents()
        assert name in "".join(shown)


def test_dark_by_the_system_and_by_the_button(browser, six):
    def backgrounds(tab):
        page = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return page, tab.locator(".js-plotly-plot").first.evaluate("div => div.layout.paper_bgcolor")

    with opened(browser, six, color_scheme="dark") as tab:
        draw(tab, "scatter")
        dark = backgrounds(tab)
        button = tab.get_by_role("button", name="Dark mode")
        assert button.get_attribute("aria-pressed") == "true"
        button.click()
        repainted = "before => document.querySelector('.js-plotly-plot').layout.paper_bgcolor !== before"
        tab.wait_for_function(repainted, arg=dark[1])
        assert button.get_attribute("aria-pressed") == "false"
        light = backgrounds(tab)
    assert dark == ("rgb(18, 19, 22)", "rgb(27, 29, 33)")
    assert light == ("rgb(246, 246, 244)", "rgb(255, 255, 255)")


@pytest.mark.parametrize("name", ["six", "hostile"])
def test_phone_does_not_scroll_sideways(browser, folder, six, name):
    path = six if name == "six" else written(folder / "hostile.html", comparison_page(hostile_runs()))
    with opened(browser, path, **PHONE) as tab:
        draw(tab, "scatter", "flatness", "own", "config", "notes") if name == "none" else draw(
            tab, "scatter", "flatness"
        )
        assert tab.evaluate("document.documentElement.scrollWidth") == 360
        table = tab.locator("#table .scroll")
        assert table.evaluate("box => box.scrollWidth > box.clientWidth")


def test_png_button_saves_a_picture(browser, six):
    with opened(browser, six) as tab:
        draw(tab, "scatter", "flatness")
        for section, start in (("flatness", "relative-flatness-kappa-mean"), ("scatter", "worst-case")):
            with tab.expect_download() as download:
                tab.locator(f"#{section} .png").first.click()
            assert download.value.suggested_filename.endswith(".png")
            assert download.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
            assert start in download.value.suggested_filename


def test_everything_can_be_reached_by_keyboard(browser, six):
    with opened(browser, six) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "main"
        tab.keyboard.press("Tab")
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        unnamed = "es => es.filter(e => !e.ariaLabel && !e.textContent.trim() && !e.labels?.length).length"
        assert tab.locator("button, select").evaluate_all(unnamed) == 0


def test_a_hundred_runs_open_quickly(browser, folder, hundred):
    _, page = hundred
    with opened(browser, written(folder / "hundred.html", page)) as tab:
        draw(tab, "scatter")
        milliseconds = tab.evaluate("performance.now()")
        tab.locator("#table .corner button").click()
        assert tab.locator("#table tbody tr").count() == 100
    # 3 s on a quiet machine of two cores; tests run beside others
    assert milliseconds < 12_000
