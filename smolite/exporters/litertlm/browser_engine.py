"""The page of `export/web` in headless Chromium: texts in, texts out, as somebody who visits it would see them."""

import functools
import shutil
import tempfile
import threading
import time
import weakref
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = "headless=new no-sandbox disable-background-networking disable-dev-shm-usage lang=en"
_BEGIN = "document.getElementById('fresh').click();"  # a script of its own, after which the page ends this job
_ASK = """
const at = (id) => document.getElementById(id);
at("temperature").value = 0;
at("most").value = arguments[1];
at("prompt").value = arguments[0];
at("form").requestSubmit();
"""
_ANSWER = """
const last = (kind) => [...document.querySelectorAll(`#log .${kind}`)].pop()?.textContent ?? null;
return [last("model"), last("error")];
"""
_ANSWERED = """
return !document.getElementById("send").disabled && document.querySelector("#log .model, #log .error") !== null;
"""


class BrowserEngine:
    """Runs a .litertlm file in a browser on this machine, through the page and a server of files on 127.0.0.1.

    Args:
        page: the folder of the built page, `dist` of `export/web`.
        path: the file.
        patience: seconds that loading, or one answer, may take.

    Raises:
        ImportError: selenium is not installed.
        FileNotFoundError: there is no such page or file, or no Chromium or chromedriver on the path.
        RuntimeError: Chromium does not start.
        ValueError: the page does not open the file.
    """

    def __init__(self, page: str | Path, path: str | Path, *, patience: float = 120.0):
        check_browser(page)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"A .litertlm file was expected. Received: {path}. Make one with `smolite export --format litertlm`."
            )
        self._patience = patience
        folder = tempfile.mkdtemp(prefix="smolite-page-")
        server = _serve(Path(page), Path(path), folder)
        try:
            self._driver = _start_browser(folder)
        except RuntimeError:
            _stop(None, server, folder)
            raise
        self.close = weakref.finalize(self, _stop, self._driver, server, folder)
        self._driver.get(f"http://127.0.0.1:{server.server_port}/index.html?model={Path(path).name}")
        self._wait("return document.documentElement.dataset.kept === 'yes'")
        if not self._driver.execute_script("return !document.getElementById('send').disabled"):
            status = self._driver.execute_script("return document.getElementById('status').textContent")
            _, error = self._driver.execute_script(_ANSWER)
            self.close()
            raise ValueError(f"The page does not open {path}. It says: {error or status}")

    def reply(self, text: str, *, max_new_tokens: int) -> str:
        """The greedy answer to what a user says first.

        Raises:
            RuntimeError: the page shows an error, or takes longer than `patience`.
        """
        self._wait("return !document.getElementById('fresh').disabled")
        self._driver.execute_script(_BEGIN)
        self._driver.execute_script(_ASK, text, max_new_tokens)
        self._wait(_ANSWERED)
        answer, error = self._driver.execute_script(_ANSWER)
        if error is not None:
            raise RuntimeError(f"The page says to {text!r}: {error}")
        return str(answer)

    def _wait(self, condition: str) -> None:
        end = time.monotonic() + self._patience
        while not self._driver.execute_script(condition):
            if time.monotonic() > end:
                raise RuntimeError(f"The page was expected to be ready within {self._patience:g} s. It was not: {condition}")
            # Asked again and again, for the page tells nobody when it is done.
            time.sleep(0.02)


def check_browser(page: str | Path) -> None:
    """Refuses where the page is not built, or what opens it is missing.

    Raises:
        ImportError, FileNotFoundError: see `BrowserEngine`.
    """
    try:
        import selenium  # noqa: F401
    except ImportError as error:
        raise ImportError('A browser is run by selenium. Run: pip install "smolite[browser]"') from error
    if not Path(page, "index.html").is_file() or not Path(page, "wasm").is_dir():
        raise FileNotFoundError(
            f"The folder of the built page was expected. Received: {page}. Build it: npm ci && npm run build in export/web "
            "makes `dist`."
        )
    if not (_chromium() and shutil.which("chromedriver")):
        raise FileNotFoundError(
            "Chromium and its driver were expected on the path. Received: not both. On Debian: apt-get install chromium "
            "chromium-driver"
        )


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


class _Files(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm", ".js": "text/javascript"}

    def log_message(self, format: str, *arguments: Any) -> None:
        """Writes nothing."""


def _serve(page: Path, path: Path, folder: str) -> ThreadingHTTPServer:
    """A server of the page and the file, from a folder of links to them."""
    root = Path(folder, "page")
    root.mkdir()
    for part in page.resolve().iterdir():
        if part.name != "model":
            # Links, since a model is too large to be copied for each look at it.
            (root / part.name).symlink_to(part)
    (root / "model").mkdir()
    (root / "model" / path.name).symlink_to(path.resolve())
    # Port 0 is any free one; 127.0.0.1, so that nobody else reads the file.
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _start_browser(folder: str) -> Any:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    options = webdriver.ChromeOptions()
    options.binary_location = _chromium() or ""
    for flag in [*_FLAGS.split(), f"user-data-dir={folder}/profile"]:
        options.add_argument(f"--{flag}")
    try:
        return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    except WebDriverException as error:
        raise RuntimeError(f"Chromium was expected to start. Received: {error.msg}") from error


def _stop(driver: Any, server: ThreadingHTTPServer, folder: str) -> None:
    if driver is not None:
        driver.quit()
    server.shutdown()
    server.server_close()
    shutil.rmtree(folder, ignore_errors=True)
