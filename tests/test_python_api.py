"""The documents: the example of the Python API runs as it stands; every name and link that they use leads somewhere."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.encoding.blob import encode

ROOT = Path(__file__).parents[1]
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("sims/*/README.md")))
)
PACKAGES = ("collective_node", "individual_node", "protocol", "sims")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
#: ``package.module`` or ``package.module.name``, in backticks.
NAME = re.compile(rf"`{{1,2}}((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_][A-Za-z0-9_]*)+)`{{1,2}}")


def test_the_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs/python-api.md").read_text()
    (code,) = BLOCK.findall(text[text.index("<!-- example -->") : text.index("<!-- /example -->")])
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(compile(code, "docs/python-api.md", "exec"), found)

    evolved, inherited, outcomes = found["evolved"], found["inherited"], found["outcomes"]
    assert set(inherited) == {"condensed", "paper"}
    for form, learngene in inherited.items():
        # What arrived is what was published, to the last bit.
        assert encode(learngene.tensors) == encode(evolved.learngenes[form].tensors)
    assert {len(outcome.accuracy) for by_shots in outcomes.values() for outcome in by_shots.values()} == {4}
    sides = [
        [
            (line["from"], line["to"], line["kind"], line["digest"])
            for line in map(json.loads, (tmp_path / "example" / party / "crossings.jsonl").read_text().splitlines())
        ]
        for party in ("collective", "individual-1")
    ]
    assert sides[0] == sides[1]
    assert [kind for _, _, kind, _ in sides[0]] == 2 * ["request", "release", "grant", "blob", "receipt"]
    printed = capsys.readouterr().out
    assert "10 classes known" in printed
    assert "condensed less scratch" in printed


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_python_block_compiles_and_its_imports_exist(document: str) -> None:
    for code in BLOCK.findall((ROOT / document).read_text()):
        compile(code, document, "exec")
        exec("\n".join(line for line in code.splitlines() if line.startswith(("from ", "import "))), {})


@pytest.mark.parametrize("document", [*DOCUMENTS, *(f"{package}/__init__.py" for package in PACKAGES)])
def test_every_name_that_a_document_uses_exists(document: str) -> None:
    names = sorted(set(NAME.findall((ROOT / document).read_text())))
    missing = [name for name in names if not exists(name)]
    assert not missing
    assert names or document not in ("docs/python-api.md", *(f"{package}/__init__.py" for package in PACKAGES))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_or_heading_leads_there(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}, link


def test_the_search_for_names_can_fail() -> None:
    assert NAME.findall("`protocol.exchange.endpoint` and ``protocol.exchange.endpoint.Nobody``") == [
        "protocol.exchange.endpoint",
        "protocol.exchange.endpoint.Nobody",
    ]
    assert exists("protocol.exchange.collective_endpoint.CollectiveEndpoint.open")
    assert not exists("protocol.exchange.endpoint.Nobody")
    assert not exists("protocol.nowhere")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_itself_loads_neither_torch_nor_numpy(package: str) -> None:
    code = f"import sys, {package}; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute that a module has."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False
