"""The page of `skyrl report` in a real browser: what is drawn, what keys do, what cannot run."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyrl_kernel.report import build_report
from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.scripted import Script, installed, run_scripted

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A headless Chromium with one page, spoken to over its debugging pipe."""

    def __init__(self, profile: Path) -> None:
        # The browser reads commands from descriptor 3 and writes to 4.
        commands, self._write = os.pipe()
        self._read, replies = os.pipe()
        line = f'exec "$@" 3<&{commands} 4>&{replies}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        """Addresses that the page has asked for."""
        self.errors: list[str] = []
        """Exceptions and console errors of the page, and dialogs that it opened."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self._process.wait(10)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, and its result."""
        self._send(method, **params)
        number = self._number
        while True:
            reply = self._next()
            if reply.get("id") == number:
                if "error" in reply:
                    raise OSError(f"{method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result
            self._note(reply)

    def _send(self, method: str, **params: Any) -> None:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 1 << 16)
            if not data:
                raise OSError("the browser has gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

        if event.get("method") == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {params['message']}")
            self._send("Page.handleJavaScriptDialog", accept=True)

    def open(self, page: Path, place: str = "") -> None:
        """Load the page and wait until it has drawn itself."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{page.as_uri()}{place}")
        for _ in range(500):
            with contextlib.suppress(OSError):  # the document may change while it is asked
                if self.run("document.body?.dataset.ready") or self.errors:
                    break
            time.sleep(0.02)
        assert not self.errors, self.errors

    def run(self, script: str) -> Any:
        """Value of an expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """What is seen in the first element that matches."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def count(self, selector: str) -> int:
        return int(self.run(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def press(self, *keys: str) -> None:
        for key in keys:
            text = key if len(key) == 1 else ""
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Size of the window, and the reader's colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile))
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("not checked in a browser: there is no chromium (apt-get install chromium)")
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """On a laptop, in light; what the page has asked for and complained about starts empty."""
    shared.requests.clear()
    shared.errors.clear()
    shared.look(width=1366, height=860)
    yield shared
    assert shared.errors == []


ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real runs over the same prompts: two turns each, HTML for answers, one prompt is lost."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"prompt": [{"role": "user", "content": f"question {n} {ATTACK}"}],
         "rewards": [0.25, float(n % 2)], "replies": ["<b>wrong</b>, again"],
         "fault": "step raise" if n == 3 else None}
        for n in range(6)
    ]  # fmt: skip
    data = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    script = Script(reply=lambda ask: f"{ATTACK} seven")
    with installed(folder / "site"):
        return [
            run_scripted(
                folder,
                f"data.train_data=['{data}']",
                "generator.max_turns=2",
                *words,
                script=script,
            ).folder
            for words in (
                ("generator.sampling_params.max_generate_length=90", "trainer.run_name=first"),
                ("generator.sampling_params.max_generate_length=99", "trainer.run_name=second"),
            )
        ]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the first run."""
    return written(tmp_path_factory.mktemp("page"), folders[:1])


@pytest.fixture(scope="module")
def both(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on both."""
    return written(tmp_path_factory.mktemp("page"), folders)


def written(folder: Path, runs: list[Path]) -> Path:
    with installed(folder / "site"):
        (folder / "report.html").write_text(build_report(runs).html, encoding="utf-8")
    return folder / "report.html"


VIEWS = ("#overview", "#trajectories", "#failures", "#settings")


# --- drawing ------------------------------------------------------------------------------------


def test_every_view_draws_itself_and_asks_for_nothing(browser: Browser, both: Path) -> None:
    for view in VIEWS:
        browser.open(both, view)
        assert len(browser.text("main")) > 50
    assert {url.partition("#")[0] for url in browser.requests} <= {both.as_uri(), "about:blank"}


def test_nothing_that_a_model_wrote_runs(browser: Browser, both: Path) -> None:
    for view in (*VIEWS, "#side?uid=0:1"):
        browser.open(both, view)
        assert browser.count("main script, main img") == 0
    browser.open(both, "#trajectories")
    assert ATTACK in browser.text(".assistant .tokens")
    assert ATTACK in browser.text(".said.user")


def test_even_a_script_that_got_into_the_page_would_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')"
    )
    time.sleep(0.1)
    assert browser.run("typeof window.ran") == "undefined"
    assert any("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()


def test_legends_show_the_numbers_of_metrics_jsonl(
    browser: Browser, page: Path, folders: list[Path]
) -> None:
    browser.open(page)
    lines = RunFolder(folders[0]).read_metrics()
    chart = "[...document.querySelectorAll('.chart')].find((one) => one.querySelector('h3').textContent === 'Reward')"
    assert f"avg_raw_reward {lines[-1]['reward/avg_raw_reward']:.3f}" in browser.run(
        f"{chart}.innerText"
    )
    browser.run(f"{chart}.querySelector('svg').focus()")
    browser.press("Home")
    shown = browser.run(f"{chart}.innerText")
    assert f"step {lines[1]['step']}" in shown  # step 0 has an evaluation only
    assert f"avg_raw_reward {lines[1]['reward/avg_raw_reward']:.3f}" in shown
    last = f"{lines[-1]['reward/avg_raw_reward']:.3f} at step {lines[-1]['step']}"
    assert last in browser.run(f"{chart}.querySelector('svg').ariaLabel")


def test_any_metric_can_be_drawn(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = browser.count(".chart")
    browser.run("document.querySelector('.numbers tr[data-name=\"trainer/epoch\"] button').click()")
    assert browser.count(".chart") == before + 1
    assert browser.text(".chart h3") == "trainer/epoch"


@pytest.mark.parametrize("view", [*VIEWS, "#side?uid=0:1"])
def test_a_page_is_no_wider_than_a_phone_and_readable_in_the_dark(
    browser: Browser, both: Path, view: str
) -> None:
    for width, dark in ((390, False), (390, True), (1366, True)):
        browser.look(width=width, height=844, dark=dark)
        browser.open(both, view)
        assert browser.run("document.documentElement.scrollWidth") <= width
        ink, ground = (
            browser.run(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
            for name in ("color", "backgroundColor")
        )
        assert (sum(ink) > sum(ground)) is dark


def test_a_folded_reply_says_what_is_in_it(browser: Browser, page: Path) -> None:
    browser.open(page, "#trajectories")
    browser.run("document.querySelector('.said.reply').open = false")
    assert "<b>wrong</b>, again" in browser.text(".said.reply summary")


# --- finding --------------------------------------------------------------------------------------


def test_trajectories_are_filtered_sorted_and_searched(browser: Browser, both: Path) -> None:
    browser.open(both, "#trajectories")
    everything = browser.count(".rows li")
    browser.open(both, "#trajectories?only_run=first")
    assert browser.count(".rows li") == everything // 2
    browser.open(both, "#trajectories?sort=best")
    rewards = browser.run(
        "[...document.querySelectorAll('.rows .reward')].map((one) => Number(one.textContent.slice(2)))"
    )
    assert rewards == sorted(rewards, reverse=True)
    assert len(set(rewards)) > 1
    browser.open(both, "#trajectories?min=1")
    assert 0 < browser.count(".rows li") < everything
    browser.open(both, "#trajectories")
    browser.press("/", *"question 5")
    assert browser.run("document.activeElement.value") == "question 5"
    assert 0 < browser.count(".rows li") < everything
    assert browser.text(".count").startswith(f"{browser.count('.rows li')} trajector")


def test_an_address_leads_to_a_trajectory(browser: Browser, both: Path) -> None:
    browser.open(both, "#trajectories?sort=best")
    browser.press("j", "j")
    place, title = browser.run("location.hash"), browser.text(".crumbs")
    browser.open(both, place)
    assert browser.text(".crumbs") == title
    browser.open(both, "#trajectories?run=first&step=1&group=77&sample=0")
    assert "Sample 0 of group 77 in step 1 of first is not on this page" in browser.text(".detail")


def test_keys_lead_from_run_to_step_to_group_to_sample_to_turn_to_token(
    browser: Browser, both: Path
) -> None:
    browser.open(both)
    browser.press("2")
    assert (
        browser.run("document.querySelector('.detail article').dataset.id.split(' ')[0]") == "first"
    )

    def shown() -> tuple[str, ...]:
        return tuple(browser.run("document.querySelector('.detail article').dataset.id").split())

    first = shown()
    browser.press("j")
    assert shown() != first
    browser.press("k")
    assert shown() == first
    browser.press("s")
    assert shown()[1] == "2"
    browser.press("S")
    assert shown()[1] == "1"
    browser.press("r")
    assert shown()[0] == "second"
    browser.press("R")
    browser.press("t", "t")
    assert "turn 2" in browser.run("document.activeElement.textContent")
    browser.press("ArrowRight")
    assert "trained" in browser.text("#token")
    token = browser.text("#token")
    browser.press("ArrowRight")
    assert browser.text("#token") != token
    browser.press("g")
    assert browser.count(".columns article") == 2
    browser.press("g")
    assert browser.count(".detail article") == 1
    browser.press("?")
    assert browser.run("document.getElementById('help').open")
    browser.press("Escape")


def test_a_group_and_a_prompt_are_seen_side_by_side(browser: Browser, both: Path) -> None:
    browser.open(both, "#trajectories?min=1")
    browser.run("document.querySelector('.siblings a[href^=\"#side?uid\"]').click()")
    time.sleep(0.1)
    assert browser.text(".side h2").endswith("in 2 runs")
    heads = browser.run("[...document.querySelectorAll('.side h3')].map((one) => one.textContent)")
    assert {head.split(" › ")[0] for head in heads} == {"first", "second"}
    assert "<b>wrong</b>, again" in browser.text(".columns .answer")


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_are_coloured_by_what_is_asked(browser: Browser, page: Path) -> None:
    looks = {}
    for color in ("logprob", "mask", "none"):
        browser.open(page, f"#trajectories?color={color}")
        looks[color] = browser.run(
            "[...document.querySelectorAll('.said.reply .token, .assistant .token')].map((one) => one.className)"
        )
    assert any("warm" in look for look in looks["logprob"])
    assert any("cool3" in look for look in looks["mask"])
    assert any("masked" in look for look in looks["mask"])
    assert not any("warm" in look or "cool" in look for look in looks["none"])


def test_a_colouring_that_the_files_do_not_have_is_off(browser: Browser, page: Path) -> None:
    browser.open(page, "#trajectories?color=reference")
    assert browser.run("document.querySelector('#color option[value=reference]').disabled")
    assert browser.run("document.querySelector('#color').value") == "mask"


def test_the_prompt_is_there_as_tokens_too(browser: Browser, page: Path) -> None:
    browser.open(page, "#trajectories")
    is_open = "document.querySelector('.said.prompt').open"
    assert not browser.run(is_open)
    browser.press("e")
    assert browser.run(is_open)
    question = browser.text(".said.user .text")
    assert question.startswith("question ")
    assert question in browser.text(".said.prompt .tokens")
    browser.press("e")
    assert not browser.run(is_open)


def test_what_is_known_of_a_token_is_told(browser: Browser, page: Path) -> None:
    browser.open(page, "#trajectories")
    browser.press("ArrowRight")
    told = browser.text("#token")
    assert '"<"' in told
    assert re.search(r"p 0\.\d+ \(log −", told)
    assert told.endswith("trained")


def test_a_trajectory_is_copied_as_json(browser: Browser, page: Path) -> None:
    browser.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    browser.open(page, "#trajectories?sort=best")
    browser.press("y")
    time.sleep(0.2)
    copy = json.loads(browser.run("navigator.clipboard.readText()"))
    assert (copy["run"], copy["reward"]) == ("first", 1.25)
    assert copy["blocks"][1]["text"] == f"{ATTACK} seven"


# --- tables ---------------------------------------------------------------------------------------


def test_lost_trajectories_are_counted_and_can_be_searched(browser: Browser, both: Path) -> None:
    browser.open(both, "#failures")
    count = browser.count(".failures tbody tr")
    assert browser.text("#top .badge") == str(count)
    assert "the row asked for it" in browser.text(".failures .message")
    browser.open(both, "#failures?q=no such text")
    assert browser.count(".failures tbody tr") == 0


def test_settings_begin_with_what_differs(browser: Browser, both: Path) -> None:
    browser.open(both, "#settings")
    differs = browser.text("details.card")
    assert "generator.sampling_params.max_generate_length" in differs
    assert "trainer.run_name" in differs
    assert "generator.max_turns" not in differs
