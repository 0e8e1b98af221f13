"""The page of a backend, in a browser: what one user types, the other one sees."""

from __future__ import annotations

import sys

import pytest
from demo_backends import SCRIPTS, sees
from playwright.sync_api import expect

sys.path.append(str(SCRIPTS / "_demo"))

from browser import open_browser
from screenshot import draw


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def window(browser):
    """A window in which nothing may go wrong unseen."""
    context = browser.new_context()
    complaints = []
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    yield context
    assert complaints == []


@pytest.fixture
def pages(window, two):
    """What Ada and Bob have open."""
    opened, asked = [], []
    for backend in two:
        page = window.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(backend.url)
        opened.append(page)
    yield opened
    # Nothing but the backends is asked for anything.
    own = tuple(backend.url for backend in two)
    assert asked
    assert all(url.startswith(own) for url in asked)
    for page in opened:
        page.close()


def card(page, title):
    return page.locator("article").filter(has=page.get_by_role("heading", name=title))


def test_what_is_typed_in_one_page_is_seen_in_the_other_and_that_is_the_picture_of_the_readme(
    browser, two, tmp_path
):
    ada, bob = two
    draw(browser, ada.url, bob.url, tmp_path / "demo.png")
    drawn, kept = (tmp_path / "demo.png").read_bytes(), (SCRIPTS.parent / "docs" / "demo.png").read_bytes()
    for picture in (drawn, kept):
        assert picture.startswith(b"\x89PNG")
    width_and_height = slice(16, 24)
    assert drawn[width_and_height] == kept[width_and_height]
    assert len(kept) < 200_000


def test_a_click_revokes_a_share(pages, two):
    ada, bob = pages
    two[0].share(two[0].create("Shared"), "bob")
    expect(card(bob, "Shared")).to_contain_text("Shared by Ada")
    ada.bring_to_front()
    card(ada, "Shared").get_by_role("button", name="Stop sharing with Bob").click()
    expect(card(bob, "Shared")).to_have_count(0)


def test_what_others_write_is_text_and_what_one_types_stays(pages, two):
    backend, _ = two
    _, bob = pages
    id = backend.create("<b>Not bold</b>", notes="<img src=x onerror=alert(1)>", tags=["<i>"])
    backend.share(id, "bob")
    two[1].until(sees, id)
    seen = card(bob, "<b>Not bold</b>")
    seen.get_by_label("Comment").fill("Half a sen")
    backend.comment(id, "<script>alert(1)</script>")
    expect(seen.locator("li p")).to_have_text("<script>alert(1)</script>")
    expect(seen.locator(".notes")).to_have_text("<img src=x onerror=alert(1)>")
    expect(seen.get_by_label("Comment")).to_have_value("Half a sen")
    assert seen.locator("b, i, img, script").count() == 0


def test_the_page_says_when_its_backend_is_gone(pages):
    _, bob = pages
    expect(bob.get_by_role("status")).to_have_text("connected")
    bob.route("**/api/state*", lambda route: route.fulfill(status=200, body="not JSON"))
    expect(bob.get_by_role("status")).to_have_text("no answer")
    bob.unroute("**/api/state*")
    expect(bob.get_by_role("status")).to_have_text("connected")
