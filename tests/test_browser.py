"""The page in a browser: no errors, nothing fetched, columns sort by mouse and by keyboard, a phone shows all of it."""

import fcntl
import json
import os
import select
import shutil
import signal
import time

import pytest
from pages import HOSTILE, entry, make
from PIL import Image

from gacd.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe"
)


class Browser:
    """One tab, driven by the DevTools protocol through a pipe: JSON messages that end in a zero byte."""

    def __init__(self, folder):
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*os.pipe(), *os.pipe())]
        theirs, self.to, self.back, answers = ends
        argv = [CHROMIUM, *OPTIONS.split(), f"--user-data-dir={folder / 'profile'}"]
        log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
        moves = [(os.POSIX_SPAWN_DUP2, old, new) for old, new in ((theirs, 3), (answers, 4), (log, 1), (log, 2))]
        self.pid = os.posix_spawn(CHROMIUM, argv, dict(os.environ), file_actions=moves, setpgroup=0)
        for end in (theirs, answers, log):
            os.close(end)
        self.rest, self.count, self.events, self.session = b"", 0, [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = dict(sessionId=self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.count += 1
        message = dict(id=self.count, method=method, params=parameters, **self.session)
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def read(self):
        until = time.monotonic() + 60
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], until - time.monotonic())
            more = os.read(self.back, 1 << 16) if ready else b""
            assert more, "the browser ended or does not answer"
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, width):
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def ask(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        os.close(self.to)
        os.close(self.back)
        os.killpg(self.pid, signal.SIGKILL)  # the group that this browser leads
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A page with all that it may hold, hostile names and long ones among them."""
    root = tmp_path_factory.mktemp("runs")
    metrics = [dict(step=n, epoch=0, loss=1.0 / n, val_natural=0.5, val_robust=0.1) for n in (1, 2)]
    for seed, share in enumerate((0.3, 0.05, 0.1)):
        rows = [entry(f"pgd{k}", share + 0.1 / k, "8/255", steps=k) for k in (1, 10, 100)]
        rows += [entry("natural", 0.9), entry("pgd100", share + 0.2, "4/255", steps=100)]
        make(root, f"a-{seed}", rows, options=dict(seed=seed), metrics=metrics)
    hostile = HOSTILE.replace("/", "∕").replace("alert(", "document.title=(")
    make(root, hostile, [entry("natural", 0.8), entry("fgsm", 0.2, "8/255")], options=dict(teacher=hostile))
    make(root, "long" * 30, [entry("natural", 0.7)], options=dict(method="method" * 20))
    (root / "analysis").mkdir()
    Image.new("RGB", (1600, 400), "navy").save(root / "analysis" / "broad.png")
    (root / "analysis" / "analysis.json").write_text(json.dumps(dict(figures={"broad.png": hostile})))
    assert main(["report", str(root)]) == 0
    return root / "report.html"


@pytest.mark.parametrize("width", [1200, 360])
def test_no_errors_nothing_fetched_no_sideways_scrolling(browser, place, width):
    browser.open(place, width)
    browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.title") == "Runs", "no name became a script"
    assert browser.ask("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    said = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening"}
    assert [event for event in browser.events if event.get("method") in said] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} == {"file", "data"}


def test_columns_sort(browser, place):
    browser.open(place, 1200)
    head = "[...document.querySelector('table').tHead.rows[0].cells].find(cell => cell.textContent == '{}')"
    column = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[{}].textContent.trim())"
    worst = browser.ask(head.format("worst") + ".cellIndex")
    first = browser.ask(column.format(worst))
    browser.ask(head.format("worst") + ".click()")
    assert browser.ask(head.format("worst") + ".ariaSort") == "descending"
    assert (
        browser.ask(column.format(worst))
        == ["30.1", "20.0", "10.1", "5.1", "–"]
        == sorted(first, key=lambda text: -float(text.replace("–", "-1")))
    )
    browser.ask(head.format("worst") + ".click()")
    assert browser.ask(column.format(worst)) == ["–", "5.1", "10.1", "20.0", "30.1"], "as numbers, not as words"
    assert browser.ask(head.format("worst") + ".ariaSort") == "ascending"
    browser.ask(head.format("run") + ".focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
    names = browser.ask(column.format(0))
    assert [name for name in names if name.startswith("a-")] == ["a-2", "a-1", "a-0"]
    assert names[0].startswith("long")
    assert browser.ask(head.format("worst") + ".ariaSort") is None
