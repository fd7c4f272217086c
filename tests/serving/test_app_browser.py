"""The app in headless Chromium, as people meet it."""

import json
import re
import shutil
import sys
import time

import pytest
from served import CLI, HOSTILE, fetch, free_port, hostile_run, served

SLOWLY = f"""
import time
from smolite.generation.keras_engine import KerasEngine
step = KerasEngine.step
KerasEngine.step = lambda *given: time.sleep(0.03) or step(*given)
{CLI}
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "needs Chromium and its driver, as of `apt-get install chromium chromium-driver`"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and shutil.which("chromedriver")), reason=MISSING),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    run = hostile_run(tmp_path_factory)
    port, folder = free_port(), tmp_path_factory.mktemp("clean")
    with served([sys.executable, "-c", SLOWLY, "app", str(run), "--port", port], folder, port=port) as address:
        yield address


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    quiet = (
        "--headless=new --no-sandbox --disable-background-networking --disable-dev-shm-usage --window-size=1300,1000".split()
    )
    for flag in [*quiet, profile]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """The app's page, opened anew."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.all("#send"))

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def wait(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.driver.find_element("css selector", "body").text
            time.sleep(0.01)
        return found

    def wait_until_written(self):
        """Until text and figures have stood still for a second and a half."""
        last, since = None, time.monotonic()
        while time.monotonic() < since + 1.5:
            now = self.reply(), self.value("#figures textarea")
            last, since = now, time.monotonic() if now != last else since
            time.sleep(0.1)

    def type(self, css, *keys):
        self.all(css)[0].send_keys(*keys)

    def click(self, css):
        self.all(css)[0].click()

    def value(self, css):
        return self.all(css)[0].get_property("value")

    def reply(self):
        """The text of the last reply as it is on the screen."""
        return (["", *(each.get_property("innerText") for each in self.all("#dialogue [data-testid=bot]"))])[-1]

    def ask(self, text):
        self.type("#prompt textarea", text)
        self.click("#send")

    def finished(self):
        return self.wait(
            lambda: re.fullmatch(r"(\d+) tokens? · first after [\d,]+ ms · [\d,]+ tokens/s", self.figures_at_rest())
        )

    def figures_at_rest(self):
        before = self.value("#figures textarea")
        time.sleep(0.4)
        return before if before == self.value("#figures textarea") else ""


@pytest.fixture
def page(driver, address):
    return Page(driver, address)


def test_a_reply_streams_in_as_text(page):
    """The markup is neither run nor rendered, and is still there to be read, newline and all."""
    page.ask("안녕!")
    seen = []
    page.wait(lambda: seen.append(page.reply()) or seen[-1] == HOSTILE)
    grown = sorted({text for text in seen if text}, key=len)
    assert len(grown) >= 5 and all(HOSTILE.startswith(text) for text in grown)
    page.finished()
    assert page.driver.title == "run · smolite"
    assert not page.all("#dialogue script, #dialogue b, #dialogue strong, #dialogue .katex")
    assert page.value("#prompt textarea") == ""


def test_what_people_write_is_text_too(page):
    page.ask("<img src=x onerror=\"document.title='y'\"> **a**")
    page.wait(lambda: re.match(r"\d+ tokens? · first after", page.figures_at_rest()))  # it may have nothing to say
    shown = page.all("#dialogue [data-testid=user]")[0]
    assert shown.get_property("innerText") == "<img src=x onerror=\"document.title='y'\"> **a**"
    assert page.driver.title == "run · smolite" and not page.all("#dialogue [data-testid=user] img")


def test_the_sliders_are_honoured(page):
    """Each moved to an end by the keyboard: 10 tokens; and at temperature 2 another answer than by heart, until top-k is 1."""
    from selenium.webdriver import Keys

    page.type("#max-new-tokens input[type=range]", Keys.HOME)
    page.ask("안녕!")
    assert page.finished()[1] == "10" and HOSTILE.startswith(page.reply())
    page.click("#clear")
    page.wait(lambda: not page.all("#dialogue [data-testid=bot]") and page.value("#figures textarea") == "")
    page.type("#top-k input[type=range]", Keys.HOME)
    page.type("#temperature input[type=range]", Keys.END)
    page.type("#max-new-tokens input[type=range]", Keys.END)
    page.ask("안녕!")
    page.finished()
    assert page.reply() == HOSTILE


def test_stop_ends_an_answer_and_the_next_one_comes(page):
    """The engine is free again, and the dialogue goes on with what was said until then."""
    page.ask("안녕!")
    page.wait(lambda: len(page.reply()) > 3)
    page.click("#stop")
    page.wait_until_written()
    stopped, figures = page.reply(), page.value("#figures textarea")
    time.sleep(0.7)
    assert page.reply() == stopped and 3 < len(stopped) < len(HOSTILE) and HOSTILE.startswith(stopped)
    assert page.value("#figures textarea") == figures
    page.ask("뭐 해?")
    page.wait(lambda: len(page.all("#dialogue [data-testid=bot]")) == 2 and page.reply())
    first, second = page.all("#dialogue [data-testid=bot]")
    assert first.get_property("innerText") == stopped
    page.wait_until_written()
    page.click("#clear")
    page.wait(lambda: not page.all("#dialogue [data-testid=bot]"))
    page.ask("안녕!")
    page.wait(lambda: page.reply() == HOSTILE)


def test_a_text_is_continued(page):
    page.click("button[role=tab]:nth-of-type(2)")
    page.wait(lambda: page.all("#beginning textarea")[0].is_displayed())
    page.type("#beginning textarea", "안녕 <b>")
    page.click("#continue")
    page.wait(lambda: page.value("#text textarea").startswith("안녕 <b>") and page.value("#text-figures textarea"))
    assert re.match(r"\d+ tokens? · first after", page.value("#text-figures textarea"))


def test_the_int8_file_is_an_engine(page):
    page.click("input[role=combobox]")
    names = ["keras", "saved_model", "model.tflite", "model_int8.tflite"]
    page.wait(lambda: [option.text.strip("✓ \n") for option in page.all("[role=option]")] == names)
    page.all("[role=option]")[-1].click()
    page.ask("안녕!")
    page.finished()
    assert page.reply() == HOSTILE


def test_an_error_is_said_and_the_prompt_kept(page):
    page.ask("점심은? " * 60)
    error = page.wait(lambda: page.value("#figures textarea").removeprefix("…"))
    assert error.startswith("A prompt must have 1 to 128 tokens") and page.value("#prompt textarea") == "점심은? " * 60
    assert not page.all("#dialogue [data-testid=bot]")


def test_no_request_leaves_the_server(driver, address):
    driver.get_log("performance")
    page = Page(driver, address)
    page.ask("안녕!")
    page.finished()
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    asked += [each["params"]["url"] for each in messages if each["method"] == "Network.webSocketCreated"]
    ours = (f"{address}/", "data:", "blob:")
    assert len(asked) > 20 and not [url for url in asked if not url.startswith(ours)]
    links = re.findall(r'<(?:link|script|iframe)[^>]*(?:href|src)="(https?:[^"]*)"', fetch(address))
    assert not links and not re.search(r"(url\(|@import) *[\"']?(https?:)?//", fetch(f"{address}/theme.css"))
