"""An annotator at the annotation page, in headless Chromium: mouse, keyboard, a closed tab, a killed server."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collective_node.annotation.clusters import clusters
from collective_node.annotation.labels import FEWEST_IMAGES, Labels, read
from collective_node.annotation.unknown_set import cycle_folder, store
from protocol.commands.init_command import initialise
from protocol.keys.signing_key import SigningKey
from tests.collective_node.made_unknown_set import unknown_set

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]

#: Images in the order of the page, group after group.
GROUPS = [cluster.images for cluster in clusters(unknown_set())]
ORDER = [image for group in GROUPS for image in group]


class Node:
    """A node's folder with a waiting set, and the command that shows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = cycle_folder(folder / "node" / "state", 1)
        (folder / "data").mkdir()
        root = SigningKey.generate().public_hex
        initialise(folder / "node", role="collective", data=folder / "data", party="collective", root=root)
        store(self.folder, unknown_set())
        self._configuration = folder / "node" / "config.toml"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start the command and return the address that it prints."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collective_node", "annotate", "--config", str(self._configuration), "--no-browser"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        return next(line.strip() for line in self.process.stdout if "http://" in line)

    def kill(self) -> None:
        """As a power cut does."""
        if self.process:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None

    def labels(self) -> Labels:
        """What is on disk."""
        return read(self.folder)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: "Browser") -> "Iterator[BrowserContext]":
    """A browser's window; what its pages' programs complain of, or their security policy refuses, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    complaints: list[str] = []
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    yield context
    context.close()
    assert complaints == []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.kill()


def visit(context: "BrowserContext", address: str) -> "Page":
    """Open a tab and wait until it shows the images."""
    page = context.new_page()
    page.goto(address)
    page.locator(".tile").first.wait_for()
    return page


def tile(page: "Page", image: int) -> "Locator":
    return page.locator(f'.tile[data-image="{image}"]')


def until(page: "Page", condition: Callable[[], bool]) -> None:
    """Wait until something holds, and say what the page shows where it does not."""
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail(f"it did not come about; the page says {page.locator('#stored').inner_text()!r}")


def stored(page: "Page", node: Node, expected: dict[int, str | None]) -> None:
    """Wait until the page says that all is stored; then exactly these labels are on disk and on the page."""
    page.locator('#stored[data-state="stored"]').wait_for()
    assert dict(node.labels().given) == expected
    shown = page.locator(".tile").evaluate_all(
        "tiles => tiles.map(tile => [Number(tile.dataset.image), tile.dataset.state, tile.textContent])"
    )
    assert {image: (state, caption) for image, state, caption in shown} == {
        image: ("undecided", "")
        if image not in expected
        else ("dismissed", "dismissed")
        if expected[image] is None
        else ("named", expected[image])
        for image in ORDER
    }


def selected(page: "Page") -> set[int]:
    found = page.locator('.tile[aria-selected="true"]').evaluate_all("tiles => tiles.map(tile => tile.dataset.image)")
    return {int(image) for image in found}


def press(page: "Page", *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def name(page: "Page", text: str) -> None:
    """By keyboard, with the focus on an image."""
    press(page, "Enter")
    page.keyboard.type(text)
    press(page, "Enter")


def test_by_keyboard_alone(context: "BrowserContext", node: Node) -> None:
    page = visit(context, node.start())
    first, second, third, fourth, *_ = ORDER
    press(page, "Space", "ArrowRight", "Space")
    assert selected(page) == {first, second}
    name(page, "otter")
    stored(page, node, {first: "otter", second: "otter"})
    # The keyboard is at the next image that is not decided: nothing need be selected.
    press(page, "d")
    stored(page, node, {first: "otter", second: "otter", third: None})
    press(page, "1")
    stored(page, node, {first: "otter", second: "otter", third: None, fourth: "otter"})
    press(page, "u", "u")
    stored(page, node, {first: "otter", second: "otter"})
    press(page, "Home", "c")
    stored(page, node, {second: "otter"})
    # The whole of the second group, and a name that is completed.
    press(page, "PageDown", "a")
    assert selected(page) == set(GROUPS[1])
    press(page, "Enter")
    page.keyboard.type("OT")
    assert page.locator("#suggestions li").first.inner_text().split("\n")[0] == "otter"
    press(page, "ArrowDown", "Enter")
    stored(page, node, {second: "otter"} | dict.fromkeys(GROUPS[1], "otter"))
    # Shift selects on the way; Escape leaves the field, and then the selection.
    press(page, "Shift+ArrowRight", "Shift+ArrowRight")
    assert selected(page) == set(GROUPS[2][:3])
    press(page, "Enter", "Escape", "Escape")
    assert selected(page) == set()
    press(page, "?")
    assert page.locator("#help").is_visible()
    press(page, "Escape")
    assert not page.locator("#help").is_visible()


def test_arrows_follow_the_rows_across_groups(context: "BrowserContext", node: Node) -> None:
    page = visit(context, node.start())

    def box() -> dict[str, float]:
        found = page.locator(".tile:focus").bounding_box()
        assert found
        offset = page.evaluate("scrollY")
        return {"x": found["x"], "y": found["y"] + offset}

    press(page, "ArrowRight", "ArrowRight")
    rows = [box()]
    while True:
        press(page, "ArrowDown")
        if box() == rows[-1]:
            break
        rows.append(box())
    assert len(rows) > len(GROUPS)
    assert {row["x"] for row in rows} == {rows[0]["x"]}
    heights = page.locator(".tile").evaluate_all(
        "tiles => [...new Set(tiles.map(tile => tile.getBoundingClientRect().y + scrollY))]"
    )
    assert [row["y"] for row in rows] == pytest.approx(heights, abs=1)
    for row in reversed(rows[:-1]):
        press(page, "ArrowUp")
        assert box() == pytest.approx(row, abs=1)


def test_by_mouse_alone(context: "BrowserContext", node: Node) -> None:
    page = visit(context, node.start())
    group = GROUPS[0]
    tile(page, group[0]).click()
    tile(page, group[3]).click(modifiers=["Shift"])
    tile(page, group[1]).click()
    assert selected(page) == {group[0], group[2], group[3]}
    page.locator("#name").fill("sea otter")
    page.locator("#naming button").click()
    expected: dict[int, str | None] = dict.fromkeys((group[0], group[2], group[3]), "sea otter")
    stored(page, node, expected)
    # A frame from the middle of the first image to the middle of the third.
    start, end = tile(page, group[0]).bounding_box(), tile(page, group[2]).bounding_box()
    assert start
    assert end
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=5)
    page.mouse.up()
    assert selected(page) == set(group[:3])
    page.locator("#dismiss").click()
    expected |= dict.fromkeys(group[:3], None)
    stored(page, node, expected)
    tile(page, group[5]).click()
    page.locator("#recent button").first.click()
    expected[group[5]] = "sea otter"
    stored(page, node, expected)
    page.locator("#undo").click()
    del expected[group[5]]
    stored(page, node, expected)
    page.get_by_role("button", name="Select group").nth(1).click()
    page.locator("#name").fill("app")
    page.locator("#suggestions li", has_text="apple").click()
    expected |= dict.fromkeys(GROUPS[1], "apple")
    stored(page, node, expected)
    assert "not new" in page.locator("#classes li", has_text="apple").inner_text()
    page.locator("#show label", has_text="dismissed").click()
    assert page.locator(".tile:visible").count() == 3


def test_a_closed_tab_and_a_killed_server_lose_nothing(context: "BrowserContext", node: Node) -> None:
    address = node.start()
    page = visit(context, address)
    press(page, "a")
    name(page, "otter")
    expected: dict[int, str | None] = dict.fromkeys(GROUPS[0], "otter")
    stored(page, node, expected)
    home = page.url
    assert "token" not in home
    page.close()

    page = visit(context, home)
    stored(page, node, expected)
    assert page.locator("#progress").get_attribute("aria-valuenow") == "16"

    node.kill()
    press(page, "d")
    name(page, "whale")
    page.locator('#stored[data-state="waiting"]').wait_for()
    assert page.locator("#alert").is_visible()
    assert page.locator("#stored").inner_text() == "2 decisions not stored yet"
    press(page, "Enter")
    page.keyboard.type("not yet sent")
    assert dict(node.labels().given) == expected

    # Started again, the server knows no cookie of before. Its new address has the same port, where the browser finds
    # what it could not send.
    again = node.start()
    assert again.partition("enter")[0] != home
    page.locator("#again").click()
    until(page, lambda: "new address" in page.locator("#alert").inner_text())
    assert dict(node.labels().given) == expected
    assert page.locator("#name").input_value() == "not yet sent"
    page.close(run_before_unload=False)
    page = visit(context, again)
    expected |= {GROUPS[1][0]: None, GROUPS[1][1]: "whale"}
    stored(page, node, expected)
    assert not page.locator("#alert").is_visible()
    tile(page, GROUPS[1][2]).click()
    press(page, "Enter")
    page.keyboard.type("not yet sent")

    # A tab that is closed while the server is away: the browser keeps what it could not send.
    node.kill()
    press(page, "Enter")
    page.locator('#stored[data-state="waiting"]').wait_for()
    page.close()
    page = visit(context, node.start())
    expected[GROUPS[1][2]] = "not yet sent"
    until(page, lambda: dict(node.labels().given) == expected)
    stored(page, node, expected)
    assert page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('annotate:')).length") == 0


def test_what_another_tab_decides_is_seen(context: "BrowserContext", node: Node) -> None:
    one = visit(context, node.start())
    other = visit(context, one.url)
    press(one, "d")
    tile(other, ORDER[0]).and_(other.locator('[data-state="dismissed"]')).wait_for()
    stored(other, node, {ORDER[0]: None})


def test_an_address_is_of_no_use_to_a_second_browser(browser: "Browser", context: "BrowserContext", node: Node) -> None:
    address = node.start()
    visit(context, address)
    stranger = browser.new_context()
    page = stranger.new_page()
    answer = page.goto(address)
    assert answer
    assert answer.status == 403
    assert "press Enter for a new one" in page.inner_text("body")
    stranger.close()


def test_it_finishes_only_with_enough_images_and_then_ends(context: "BrowserContext", node: Node) -> None:
    page = visit(context, node.start())
    name(page, "otter")
    press(page, "d")
    page.locator("#finish-button").click()
    assert page.locator("#obstacle").inner_text().startswith(f"otter: a class needs {FEWEST_IMAGES} images")
    assert page.locator("#finish-now").is_disabled()
    page.get_by_role("button", name="Go back").click()
    press(page, "1")
    expected = {ORDER[0]: "otter", ORDER[1]: None, ORDER[2]: "otter"}
    stored(page, node, expected)
    page.locator("#finish-button").click()
    assert re.split(r"\s*\n\s*", page.locator("#summary").inner_text()) == [
        *("otter", "2"),
        *("dismissed", "1"),
        *("undecided, left out", "45"),
    ]
    page.locator("#finish-now").click()
    page.locator("#done").wait_for()
    assert "2 images of 1 new class." in page.locator("#done").inner_text()
    assert node.process
    assert node.process.wait(timeout=30) == 0
    assert node.labels() == Labels(expected, finished=True)
    assert not page.locator("#alert").is_visible()
