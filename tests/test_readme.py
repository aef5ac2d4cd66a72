"""The README's commands are those that `make run` prints, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from config.local import banner

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md")))]


def test_readme_has_the_lines_that_make_run_prints():
    text = (ROOT / "README.md").read_text()
    for line in banner.tour("http://127.0.0.1:8000", "'$ADMIN_KEY'").splitlines():
        assert line.strip() in text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_is_there(page):
    file = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        found = (file.parent / path) if path else file
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def anchors(file):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
