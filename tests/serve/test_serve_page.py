"""The page at `/` in a browser: what it draws, says and asks, by keyboard too, and nothing that its policy forbids."""

import base64
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from support.browsers import MISSING, chromium
from support.bundles import expected_mask
from support.servers import serving

from export.bundle import Bundle
from export.images import U8
from serve.metrics import STAGES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed (Debian: chromium, chromium-driver)"),
]

_DROP = """
const [base64, name] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
document.getElementById("form").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
"""
_PIXELS = """
const canvas = document.getElementById(arguments[0]);
return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
"""
_LOAD = """
const [before, after, done] = arguments;
import("/page/metrics.js").then(({ added, histogram, quantile, total }) => {
  const buckets = added(histogram(before, "m"), histogram(after, "m"));
  done(buckets && [total(buckets), quantile(buckets, 0.5), quantile(buckets, 0.99)]);
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: WebDriver, base_url: str) -> Iterator[WebDriver]:
    """The page, just opened; afterwards its console may hold nothing but refusals of the server."""
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    browser.get(base_url)
    yield browser
    complaints = [line["message"] for line in browser.get_log("browser")]  # type: ignore[no-untyped-call]
    assert [line for line in complaints if "the server responded with a status of 4" not in line] == []


@pytest.fixture(scope="module")
def image() -> U8:
    """An image with every class of the tiny bundle in it, HWC."""
    rng = np.random.default_rng(0)
    return np.repeat(rng.integers(0, 256, (24, 40, 1), dtype=np.uint8), 3, axis=2)


@pytest.fixture(scope="module")
def picture(image: U8, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(image).save(path)
    return path


def at(browser: WebDriver, name: str) -> WebElement:
    return browser.find_element(By.ID, name)


def until_shown(browser: WebDriver, name: str) -> WebElement:
    try:
        return WebDriverWait(browser, 60).until(
            lambda _: found if (found := at(browser, name)).is_displayed() else False
        )
    except TimeoutException:
        told = [at(browser, place).text for place in ("status", "error")]
        pytest.fail(f"{name} is not shown; the page says {told}")


def pixels(browser: WebDriver, canvas: str, shape: tuple[int, int]) -> U8:
    """RGBA of a canvas."""
    return np.array(browser.execute_script(_PIXELS, canvas), dtype=np.uint8).reshape(*shape, 4)


def rows(browser: WebDriver, table: str) -> dict[str, float]:
    found = at(browser, table).find_elements(By.TAG_NAME, "tr")
    split = [[row.find_element(By.TAG_NAME, tag).text for tag in ("th", "td")] for row in found]
    return {head: float(value.removesuffix(" %")) for head, value in split}


def test_the_classes_are_drawn_over_the_image(page: WebDriver, picture: Path, image: U8, bundle: Bundle) -> None:
    Select(at(page, "model")).select_by_visible_text(bundle.manifest.name)
    at(page, "file").send_keys(str(picture))
    until_shown(page, "result")
    assert (pixels(page, "picture", (24, 40))[..., :3] == image).all()
    mask = expected_mask(image, 4)
    overlay = pixels(page, "overlay", (24, 40))
    assert (overlay[..., :3] == np.array(bundle.manifest.colours)[mask]).all()
    assert (overlay[..., 3] == 255).all()
    names = bundle.manifest.classes
    shares = {f"{k} {name}": round(100 * float((mask == k).mean()), 1) for k, name in enumerate(names)}
    assert rows(page, "classes") == pytest.approx(shares, abs=0.051)
    assert list(rows(page, "stages")) == [*STAGES, "whole request, as seen here"]
    assert "40 × 24" in at(page, "status").text  # noqa: RUF001
    label = at(page, "stack").get_attribute("aria-label") or ""
    assert all(name in label for name in names)


def test_a_dropped_image_is_sent(page: WebDriver, picture: Path) -> None:
    page.execute_script(_DROP, base64.b64encode(picture.read_bytes()).decode(), "dropped.png")
    until_shown(page, "result")
    assert "dropped.png" in at(page, "status").text


def test_all_is_done_by_keyboard(page: WebDriver, picture: Path, grey_bundle: Bundle) -> None:
    """But for the browser's own dialog of files, in which a driver cannot type: its result is set."""
    order = []
    for _ in range(3):
        ActionChains(page).send_keys(Keys.TAB).perform()
        order.append(page.switch_to.active_element.get_attribute("id"))
    assert order == ["model", "file", "send"]
    at(page, "file").send_keys(str(picture))
    until_shown(page, "result")
    at(page, "model").send_keys("grey")
    at(page, "send").send_keys(Keys.ENTER)
    shares, classes = at(page, "classes"), len(grey_bundle.manifest.classes)
    WebDriverWait(page, 60).until(lambda _: len(shares.find_elements(By.TAG_NAME, "tr")) == classes)
    until_shown(page, "result")
    at(page, "send").send_keys(Keys.TAB)
    slider = page.switch_to.active_element
    assert slider.get_attribute("id") == "opacity"
    slider.send_keys(Keys.HOME)
    assert at(page, "percent").text == "0 %"
    WebDriverWait(page, 60).until(lambda _: at(page, "overlay").value_of_css_property("opacity") == "0")
    slider.send_keys(Keys.END)
    WebDriverWait(page, 60).until(lambda _: at(page, "overlay").value_of_css_property("opacity") == "1")


def test_another_model_answers_when_it_is_chosen(page: WebDriver, picture: Path, grey_bundle: Bundle) -> None:
    Select(at(page, "model")).select_by_visible_text("grey")
    at(page, "file").send_keys(str(picture))
    until_shown(page, "result")
    assert len(rows(page, "classes")) == len(grey_bundle.manifest.classes)


def test_a_refusal_is_told_in_words(page: WebDriver, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    at(page, "file").send_keys(str(broken))
    message = until_shown(page, "error")
    assert message.get_attribute("role") == "alert"
    assert "415 Unsupported Media Type" in message.text
    assert "request " in message.text
    assert "{" not in message.text
    assert not at(page, "result").is_displayed()


def test_a_server_that_is_gone_is_told_of(browser: WebDriver, bundle: Bundle, picture: Path) -> None:
    with serving([bundle.path]) as url:
        browser.get(url)
    at(browser, "file").send_keys(str(picture))
    assert "cannot be reached" in until_shown(browser, "error").text


def test_without_an_image_it_asks_for_one(page: WebDriver) -> None:
    at(page, "send").click()
    assert until_shown(page, "error").text == "Choose an image first."


def test_a_tiff_that_a_browser_cannot_show_is_answered_all_the_same(page: WebDriver, image: U8, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "picture.tiff")
    at(page, "file").send_keys(str(tmp_path / "picture.tiff"))
    until_shown(page, "result")
    assert "cannot show the image" in at(page, "status").text
    assert pixels(page, "picture", (24, 40))[..., 3].max() == 0


def test_the_load_is_shown_and_moves(page: WebDriver, picture: Path) -> None:
    WebDriverWait(page, 60).until(lambda _: at(page, "qps").text == "0.00")
    assert at(page, "p50").text == "–"  # noqa: RUF001
    at(page, "file").send_keys(str(picture))
    WebDriverWait(page, 60).until(lambda _: at(page, "p99").text.endswith(" ms"))
    assert float(at(page, "qps").text) > 0


def test_quantiles_are_those_between_two_scrapes(page: WebDriver) -> None:
    """By hand: 10 requests took up to 10 ms and 90 up to 30 ms; earlier ones and other models do not count."""

    def scraped(counts: dict[str, int]) -> str:
        name = "segpress_request_duration_seconds_bucket"
        mine = [f'{name}{{le="{bound}",model="m"}} {count}' for bound, count in counts.items()]
        return "\n".join([*mine, f'{name}{{le="+Inf",model="other"}} 7000'])

    before = scraped({"0.01": 5, "0.03": 5, "+Inf": 6})
    after = scraped({"0.01": 15, "0.03": 105, "+Inf": 106})
    count, median, highest = page.execute_async_script(_LOAD, before, after)
    assert (count, median) == (100, pytest.approx(0.01 + 0.02 * 40 / 90))
    assert highest == pytest.approx(0.01 + 0.02 * 89 / 90)
    # A restarted server counts from zero.
    assert page.execute_async_script(_LOAD, after, before) is None


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (390, False)])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    base_url: str, picture: Path, width: int, dark: bool, path: str
) -> None:
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    with chromium(width=width, dark=dark) as browser:
        browser.get(base_url + path)
        if path == "/":
            at(browser, "file").send_keys(str(picture))
            until_shown(browser, "result")
        browser.execute_script(axe)
        found = browser.execute_async_script("axe.run().then(arguments[0])")
        assert [(f["id"], [node["html"] for node in f["nodes"]]) for f in found["violations"]] == []
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
