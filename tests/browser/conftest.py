"""A real browser, logged in to the admin of a real stack. Whatever it complains about fails the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kinds
from tests.conftest import running_stack
from tests.stack import Stack
from tests.staff import hire

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PASSWORD = "a password of the test"


@kinds.needs("browser")
def launch(playwright):
    kinds.require("browser")
    return playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))


@pytest.fixture(scope="package")
def stack(database) -> Iterator[Stack]:
    """One for all tests of the browser: none of them breaks it."""
    with running_stack(edition="small") as processes:
        yield processes


@pytest.fixture(scope="package")
def chromium():
    """The browser, for as long as its tests last; each has a session of its own."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    from playwright.sync_api import sync_playwright

    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright runs a loop in this thread; our queries do not wait in it.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def browser(chromium, stack, db):
    """A session of the browser: no cookie and no page of another test."""
    session = chromium.new_context(base_url=stack.url, viewport={"width": 1280, "height": 900})
    yield session
    session.close()


@pytest.fixture
def admin(browser, stack):
    """A page of the superuser "root", at the overview. Errors on its console and requests to elsewhere fail the test."""
    hire("root", superuser=True, password=PASSWORD)
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith((stack.url, "data:")) or complaints.append(request.url))
    page.on("response", lambda response: response.status >= 400 and complaints.append(f"{response.status} {response.url}"))
    page.goto("/admin/")
    page.fill("#id_username", "root")
    page.fill("#id_password", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_selector("text=Under way")
    yield page
    assert complaints == []
