"""/docs/ in a real browser: the whole API is there, and nothing comes from elsewhere."""

from fleet.openapi import document


def test_docs_show_every_operation_and_load_nothing_from_elsewhere(browser, stack):
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith((stack.url, "data:")) or complaints.append(request.url))
    page.on("response", lambda response: response.status >= 400 and complaints.append(f"{response.status} {response.url}"))
    page.goto("/docs/")
    page.wait_for_selector(".opblock")
    assert page.locator(".opblock").count() == len(document.ENDPOINTS)
    page.locator(".opblock").first.click()
    page.wait_for_selector(".responses-table")
    assert complaints == []
