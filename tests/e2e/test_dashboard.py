"""The dashboard, used by a stranger in a real browser."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from onnx import TensorProto, helper
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests import networks
from tests.browser import CHROMIUM, DRIVER, MISSING, Browser, opened_browser
from tests.e2e.conftest import DIGITS
from tests.samples import archive, encoded, picture
from tests.service import Service

needs_browser = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING)
HOSTILE = "<img src=x onerror=window.pwned=1>\"'><script>window.pwned=1</script>"
PAGES = ("", "build", "jobs", "engines", "try", "device")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose contents these tests alone decide."""
    running = Service(tmp_path_factory.mktemp("dashboard") / "data").start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def api(own: Service) -> Iterator[httpx.Client]:
    with own.client() as client:
        yield client


@pytest.fixture(scope="module")
def opened(own: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened_browser(own.url, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
        elsewhere = [url for url in browser.requests() if re.match("(http|ws)s?://(?!127[.]0[.]0[.]1:)", url)]
        assert elsewhere == []


@pytest.fixture
def browser(opened: Browser) -> Iterator[Browser]:
    """The one browser, at its usual size; what its console complains of fails the test."""
    opened.emulate()
    yield opened
    refused = "Failed to load resource: the server responded with a status of 4"  # the API refused something: shown
    assert [line for line in opened.complaints() if refused not in line] == []


@pytest.fixture(scope="module")
def example(own: Service, api: httpx.Client) -> dict[str, Any]:
    """The example's engine."""
    files = {"model": (DIGITS / "digits.onnx").read_bytes(), "calibration": (DIGITS / "calibration.zip").read_bytes()}
    fields = {"name": "digits", "labels": (DIGITS / "labels.txt").read_text(), "precision": "auto"}
    job = own.ended(api, api.post("/jobs", files=files, data=fields).json()["id"])
    engine: dict[str, Any] = api.get(f"/engines/{job['engine']}").json()
    return engine


@pytest.fixture
def stuck(own: Service, api: httpx.Client) -> Iterator[dict[str, Any]]:
    """A build that does not end by itself."""
    model = networks.endless_loop().SerializeToString()
    job = api.post("/jobs", files={"model": model}, data={"name": "stuck", "timeout_s": "300"}).json()
    yield job
    api.delete(f"/jobs/{job['id']}")
    own.ended(api, job["id"])


# --- as files -------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_carry_tags_and_a_policy_that_runs_nothing_inline(api: httpx.Client) -> None:
    for path in ("/", "/static/style.css", "/static/js/main.js"):
        page = api.get(path)
        again = api.get(path, headers={"If-None-Match": page.headers["etag"]})

        assert (page.status_code, again.status_code) == (200, 304), path
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "js", "nothing", "%00"])
def test_nothing_but_the_pages_files_is_served(own: Service, path: str) -> None:
    with httpx.Client(base_url=own.url, trust_env=False) as client:
        answer = client.send(httpx.Request("GET", f"{own.url}/static/{path}"))

    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


# --- in a browser ---------------------------------------------------------------------------------------------------


@needs_browser
def test_a_stranger_builds_watches_and_tries_the_example(browser: Browser, api: httpx.Client) -> None:
    browser.open()
    browser.button("Try with the built-in example").click()

    browser.reads("inspect", ".stages")
    browser.reads("The engine is ready")
    assert "INFO" in browser.reads("published", ".log")
    assert len(browser.all(".bars li")) == 3  # fp32, fp16 and int8, compared

    browser.button("Try it").click()
    browser.find('button[aria-label="Ask with 05_label7.png"]').click()
    answer = browser.reads("on the device", ".answer")
    best = browser.all(".answer .bars li")[0].text.split()
    assert best[0] == "7" and float(best[1]) > 50
    assert "preprocess" in answer and "compute" in answer

    browser.button("Measure 100 times").click()
    browser.reads("Latency of 100 requests")
    assert len(browser.all(".plot")) == 2


@needs_browser
def test_a_network_is_uploaded_by_the_keyboard_alone(browser: Browser, api: httpx.Client) -> None:
    def focus_on(element: str) -> Any:
        for _ in range(60):
            ActionChains(browser.driver).send_keys(Keys.TAB).perform()
            active = browser.driver.switch_to.active_element
            if active.get_attribute("id") == element:
                return active
        raise AssertionError(f"the tab key never reaches {element}")

    browser.open("engines")
    browser.reads("Engines")
    browser.open("build")
    browser.reads("Build an engine")
    focus_on("model").send_keys(str(DIGITS / "digits.onnx"))  # the file chooser is the system's, not the page's
    name = focus_on("option-name")
    assert name.get_attribute("value") == "digits"
    name.send_keys(Keys.CONTROL, "a")
    name.send_keys("typed")
    focus_on("submit").send_keys(Keys.ENTER)

    browser.reads("The engine is ready")
    assert api.get("/engines/typed").json()["precision"] == "fp32"


@needs_browser
def test_what_is_dropped_is_sent_with_the_options_that_were_changed(
    browser: Browser, api: httpx.Client, tmp_path: Path
) -> None:
    browser.open("jobs")
    browser.open("build")
    browser.find("#model").send_keys(str(networks.saved(networks.channel_means(), tmp_path)))
    browser.script(
        """const files = new DataTransfer();
        files.items.add(new File(["red\\ngreen\\nblue"], "labels.txt"));
        const zone = document.querySelector("#labels-file").closest("label");
        zone.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));"""
    )
    browser.until(
        lambda: browser.find("#option-labels").get_attribute("value") == "red\ngreen\nblue", "no labels were read"
    )
    for summary in browser.all("summary"):
        summary.click()
    browser.find("#option-preprocess").send_keys("raw")
    browser.find("#option-simplify").click()
    browser.find("#submit").click()
    browser.reads("The engine is ready")

    engine = api.get("/engines/model").json()
    assert engine["labels"] == ["red", "green", "blue"]
    assert engine["options"] == {"precision": "fp32", "preprocess": {"scale": 1.0}, "simplify": False}


@needs_browser
def test_a_refused_upload_says_why_and_what_to_do(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no network")
    browser.open("build")
    browser.find("#model").send_keys(str(broken))
    browser.find("#submit").click()

    problem = browser.reads("What to do:", ".problem")

    assert "model_rejected" in problem
    assert browser.driver.switch_to.active_element.get_attribute("class") == "problem"


@needs_browser
def test_a_failed_build_says_why_and_what_to_do_and_can_be_tried_again(
    browser: Browser, own: Service, api: httpx.Client
) -> None:
    job = own.build(api, networks.channel_means().SerializeToString(), "mislabelled", labels="only,two", simplify="no")

    browser.open(f"jobs/{job['id']}")

    problem = browser.reads("What to do:", ".problem")
    assert "labels_contradict" in problem and "3 classes" in problem
    browser.button("Retry").click()
    browser.reads("is queued again", "#toasts")
    own.ended(api, job["id"])
    browser.reads("Queued again, as asked.", ".steps")
    assert "labels_contradict" in browser.reads("What to do:", ".problem")


@needs_browser
def test_a_running_build_is_cancelled_after_a_question(browser: Browser, stuck: dict[str, Any]) -> None:
    browser.open(f"jobs/{stuck['id']}")
    browser.reads("running", "h1")
    browser.button("Cancel").click()
    browser.find("dialog[open]").send_keys(Keys.ESCAPE)  # no: it goes on
    browser.until(lambda: not browser.all("dialog"), "the question stays")
    assert "running" in browser.text("h1")

    browser.button("Cancel").click()
    browser.button("Cancel the build").click()

    browser.reads("cancelled", "h1")


@needs_browser
def test_an_engine_is_pinned_unloaded_and_deleted(browser: Browser, own: Service, api: httpx.Client) -> None:
    job = own.build(api, networks.doubled_with_marker("dashboard").SerializeToString(), "doubled", simplify="no")
    browser.open("engines")
    row = '[data-key="{}-doubled:1"]'
    browser.find(row.format("Pin")).click()
    browser.until(lambda: not browser.all(row.format("Pin")), "it is never pinned")
    assert api.get("/engines/doubled").json()["warm"]["is_pinned"]

    browser.open("engines/doubled%3A1")
    browser.reads("pinned", "h1")
    browser.button("Unload").click()
    browser.reads("cold", "h1")
    browser.open("try/doubled%3A1")
    browser.button("Random input").click()
    assert "float32" in browser.reads("on the device", ".answer")
    browser.open("engines/doubled%3A1")
    browser.button("Delete").click()
    browser.button("Delete it").click()
    browser.reads("is deleted", "#toasts")

    assert api.get(f"/engines/{job['engine']}").status_code == 404


@needs_browser
def test_the_accuracy_of_an_uploaded_engine_is_not_known(browser: Browser, api: httpx.Client) -> None:
    data = networks.doubled_with_marker("uploaded").SerializeToString()
    engine = api.post("/engines", files={"file": ("up.onnx", data)}, data={"name": "uploaded"}).json()["ref"]

    browser.open("engines")
    assert "Infinity" not in browser.reads("not known")
    browser.open(f"engines/{engine.replace(':', '%3A')}")
    browser.reads("Not known: it was uploaded as an engine")


@needs_browser
def test_what_strangers_named_stays_text(browser: Browser, own: Service, api: httpx.Client, tmp_path: Path) -> None:
    file = HOSTILE.replace("/", "")
    samples = archive(tmp_path / "s.zip", {f"{file}.png": encoded(picture(1), ".png")})
    files = {"model": (file, hostile().SerializeToString()), "calibration": (file, samples.read_bytes())}
    fields = {"name": "hostile", "labels": json.dumps([HOSTILE, "b", "c"]), "simplify": "no"}
    job = own.ended(api, api.post("/jobs", files=files, data=fields).json()["id"])
    assert job["state"] == "succeeded", job
    name = "onerror=window.pwned"

    browser.open(f"jobs/{job['id']}")
    browser.reads(name, ".log")
    browser.open("engines/hostile%3A1")
    browser.reads(name)
    browser.until(lambda: browser.all(f".thumbnails img[title*='{name}']"), "no sample is shown")
    browser.open("try/hostile%3A1")
    browser.find("#input").send_keys(str(DIGITS / "test" / "05_label7.png"))
    browser.reads(name, ".answer")
    browser.open("build")
    assert name in browser.find("#model-stored").get_attribute("textContent")
    browser.open(f"jobs/{HOSTILE}")
    browser.reads("job_not_found")

    assert browser.script("return window.pwned") is None
    assert browser.all("main script, main img[src='x']") == []


def hostile() -> onnx.ModelProto:
    """An image classifier whose tensors have names that look like markup."""
    return networks.network(
        [
            helper.make_node("GlobalAveragePool", [HOSTILE], ["means"]),
            helper.make_node("Flatten", ["means"], [f"logits{HOSTILE}"]),
        ],
        [networks.value(HOSTILE, ["rows", 3, 8, 8], TensorProto.FLOAT)],
        [networks.value(f"logits{HOSTILE}", ["rows", 3])],
    )


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_scrolls_sideways_on_a_phone(
    browser: Browser, own: Service, example: dict[str, Any], dark: bool
) -> None:
    browser.emulate(width=360, height=740, dark=dark)
    for page in (*PAGES, "engines/digits%3A1", "try/digits%3A1", f"jobs/{job_of(own, 'digits')}"):
        browser.open(page)
        browser.until(lambda: len(browser.text()) > 60, f"the page {page!r} stays empty")

        assert browser.script("return document.documentElement.scrollWidth - innerWidth") <= 0, page
    assert browser.script("return matchMedia('(prefers-color-scheme: dark)').matches") is dark


def job_of(own: Service, name: str) -> str:
    """The id of the latest job of that name."""
    found: str = httpx.get(f"{own.url}/jobs?name={name}&limit=1", trust_env=False).json()["jobs"][0]["id"]
    return found


@needs_browser
def test_the_device_page_shows_what_the_device_is(browser: Browser, api: httpx.Client) -> None:
    device = api.get("/device").json()

    browser.open("device")

    page = browser.reads("Backends")
    assert "Memory used" in page and "Disk used" in page
    assert device["system"] in page and "onnxruntime" in page
    assert len(browser.all("svg .curve")) == len(browser.all(".tiles .card")) >= 2


@needs_browser
def test_a_key_that_the_device_asks_for_is_asked_of_the_person_once(
    browser: Browser, own: Service, example: dict[str, Any]
) -> None:
    with guarded(own.url, "s3cret") as url:
        browser.driver.get(f"{url}/#/engines")
        browser.find("dialog[open] input").send_keys("wrong", Keys.ENTER)
        browser.reads("refused that key", "dialog[open]")
        browser.find("dialog[open] input").send_keys("s3cret", Keys.ENTER)

        browser.reads("digits:1")
        browser.driver.get(f"{url}/#/jobs/{job_of(own, 'digits')}")
        browser.reads("Succeeded", ".steps")  # the event stream carries the key too
        assert browser.all("dialog") == []
        assert browser.script("return [localStorage.length, document.cookie]") == [0, ""]
        browser.open()
        browser.reads("Latest jobs")


@contextmanager
def guarded(url: str, key: str) -> Iterator[str]:
    """The service behind a door that asks for a key, but not for the dashboard's own files."""

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_open = self.path == "/" or self.path.startswith("/static/")
            if not is_open and self.headers.get("Authorization") != f"Bearer {key}":
                self._answer(401, {"Content-Type": "application/problem+json"}, b'{"code": "key_missing"}')
                return
            answer = httpx.get(url + self.path, trust_env=False)
            kept = ("content-type", "content-security-policy", "etag")
            self._answer(answer.status_code, {k: v for k, v in answer.headers.items() if k in kept}, answer.content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
