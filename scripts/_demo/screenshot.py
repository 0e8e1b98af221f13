"""Draws the picture for the README: what Ada and Bob see of the same position.

usage: screenshot.py ADA_URL BOB_URL FILE
"""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING

from browser import open_browser
from playwright.sync_api import expect

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

_WIDTH, _HEIGHT, _SCALE = 560, 640, 1.5
_TITLE = "NVDA: breakout above the range"
_NOTES = "Long above 140, stop at 132. Half the usual size until earnings."
_FRAME = """<!doctype html><meta charset="utf-8"><style>
  body { margin: 0; display: flex; gap: 28px; padding: 32px; background: #dfe3fb; }
  figure { margin: 0; border-radius: 12px; overflow: hidden; background: #e9ebf1;
           box-shadow: 0 8px 24px #1e1b4b26; }
  figcaption { display: flex; align-items: center; gap: 7px; padding: 9px 14px;
               font: 13px Inter, sans-serif; color: #667085; }
  i { width: 11px; height: 11px; border-radius: 50%%; background: #cfd4df; }
  span { flex: 1; text-align: center; margin-right: 50px; }
  img { display: block; width: %dpx; }
</style>%s"""
_WINDOW = '<figure><figcaption><i></i><i></i><i></i><span>%s</span></figcaption><img src="%s"></figure>'


def draw(browser: Browser, ada_url: str, bob_url: str, file: str | Path) -> None:
    """Have Ada and Bob type in their pages what the other one then sees, and write the picture of both."""
    window = browser.new_context(
        viewport={"width": _WIDTH, "height": _HEIGHT},
        device_scale_factor=_SCALE,
        reduced_motion="reduce",
        locale="en-GB",
    )
    ada, bob = window.new_page(), window.new_page()
    ada.goto(ada_url)
    bob.goto(bob_url)
    # A page behind another one is drawn once a second, and a click waits for that.
    ada.bring_to_front()
    ada.get_by_label("A new idea").fill(_TITLE)
    ada.get_by_role("button", name="Add").click()
    _card(ada).get_by_role("button", name="Share with Bob").click()
    expect(_card(bob)).to_contain_text("Shared by Ada")
    positions = ada.request.get(f"{ada_url}/api/state").json()["positions"]
    (id,) = [position["id"] for position in positions if position["title"] == _TITLE]
    updates = {"tags": ["momentum", "semiconductors"], "notes": _NOTES}
    ada.request.patch(f"{ada_url}/api/v1/positions/ideas/{id}", data=updates)
    expect(_card(bob).locator(".notes")).to_have_text(_NOTES)
    _say(bob, ada, "Great setup! Is the volume there?")
    _say(ada, bob, "Twice the average since Tuesday.")
    _say(bob, ada, "Then I am in. Small, before earnings.")
    _card(bob).get_by_label("Comment").fill("And the stop: on a close, or intra")
    windows = "".join(
        _WINDOW % (name, "data:image/png;base64," + base64.b64encode(page.screenshot()).decode())
        for name, page in (("Ada, localhost:8000", ada), ("Bob, localhost:8001", bob))
    )
    frame = window.new_page()
    frame.set_viewport_size({"width": 2 * _WIDTH + 92, "height": _HEIGHT + 100})
    frame.set_content(_FRAME % (_WIDTH, windows))
    frame.locator("body").screenshot(path=file)
    window.close()


def _card(page: Page) -> Locator:
    return page.locator("article").filter(has=page.get_by_role("heading", name=_TITLE))


def _say(page: Page, other: Page, text: str) -> None:
    page.bring_to_front()
    _card(page).get_by_label("Comment").fill(text)
    _card(page).get_by_role("button", name="Send").click()
    expect(_card(other).locator("li").last).to_contain_text(text)


if __name__ == "__main__":
    with open_browser() as opened:
        draw(opened, *sys.argv[1:])
