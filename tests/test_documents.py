"""The documents: links lead somewhere, and the handbook of a deployment has the order in which a person works."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
HANDBOOK = ROOT / "docs" / "deployment.md"

#: What is typed from an empty machine to the first round, then what is typed when keys change.
IN_ORDER = (
    r"pip install \.",
    "flower-superlink ",
    "learngene world make ",
    "learngene keygen ",
    "learngene trust init ",
    "collective-node init ",
    "learngene trust add ",
    "cp trust.json ",
    r"\[collective\] ",
    "collective-node doctor ",
    "collective-node start ",
    "flwr supernode register ",
    "learngene courier --home ",
    "flwr run ",
    "learngene trust revoke ",
    "learngene trust renew ",
    "learngene trust init .*--from ",
)


def anchors(document: Path) -> set[str]:
    """Of every heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_page_or_a_heading_of_ours_leads_there(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        page, _, anchor = link.partition("#")
        target = document.parent / page if page else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_handbook_has_the_order_in_which_a_person_works() -> None:
    text = HANDBOOK.read_text()
    places = []
    for typed in IN_ORDER:
        found = re.search(typed, text)
        assert found is not None, typed
        places.append(found.start())
    assert [typed for _, typed in sorted(zip(places, IN_ORDER, strict=True))] == list(IN_ORDER)


def test_a_heading_of_its_own_leads_to_the_training_the_examination_and_the_start() -> None:
    section = HANDBOOK.read_text().split("\n### Start the nodes\n")[1].split("\n## ")[0]
    assert "\n### " not in section
    for role in ("collective", "individual"):
        places = [section.index(typed) for typed in (f"[{role}] ", f"{role}-node doctor ", f"{role}-node start ")]
        assert places == sorted(places)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("tried*.md")), ids=lambda path: path.name)
def test_every_test_that_a_page_of_tried_situations_names_is_there(path: Path) -> None:
    rows = [line for line in path.read_text().splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= 20
    for row in rows:
        for file, name in re.findall(r"`(test_\w+\.py)`(?:: ([^;|(]+))?", row.rsplit(" | ", 1)[-1]):
            found = [path.read_text() for path in (ROOT / "tests").rglob(file)]
            assert found, file
            wanted = "test_" + "_".join(re.findall(r"[a-z0-9]+", name.lower()))
            assert any(wanted in text for text in found), (file, name)
