"""Tests of the site that `make docs` builds: its references have all that is in the code, and it loads nothing."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actors import client, errors, models
from actors.config import NODE_DATA_DIR
from actors.errors import DRAINING
from actors.faults import SENTENCES
from actors.metrics import METRICS
from actors.rpc.calls import Call, Stream
from actors.sandbox.recovery import DIRECTORY_MISSING
from docs.generator.rest import description
from docs.generator.settings import variables
from gateway.cli.app import COMMANDS
from gateway.status import STATUS

PROJECT = Path(__file__).parents[3]
SETTINGS = {*variables().values(), NODE_DATA_DIR}
OF_TESTS = re.compile(r"HOLDFAST_(ALLOW_MISSING_DRIVERS|TEST_\w+)")

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error: also a link to a page or a heading that does not exist."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def headings(site: Path, page: str) -> list[str]:
    """The headings of a page."""
    found = re.findall(r"<h\d[^>]*>(.*?)</h\d>", (site / page).read_text(), flags=re.DOTALL)
    return [plain(heading) for heading in found]


def tables(site: Path, page: str) -> list[dict[str, list[str]]]:
    """The rows of each table of a page: the first cell, and the others."""
    source = (site / page).read_text()
    return [dict(map(cells, re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL))) for table in source.split("<table>")[1:]]


def cells(row: str) -> tuple[str, list[str]]:
    """The text of a row's first cell, and of the others."""
    first, *others = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
    return plain(first), [plain(cell) for cell in others]


def plain(source: str) -> str:
    """The text without its tags, and without a heading's link to itself."""
    return html.unescape(re.sub(r"<a class=\"headerlink.*?</a>|<[^>]+>", "", source, flags=re.DOTALL)).strip()


def test_every_setting_has_a_row_with_its_meaning(site: Path) -> None:
    (described,) = tables(site, "reference/settings.html")
    assert described.keys() >= SETTINGS
    assert all(described[name][-1] for name in SETTINGS)
    assert described["HOLDFAST_PORT"][0] == "8484"
    assert described["HOLDFAST_PART_BYTES"][0] == "16777216 (16 MiB)"
    assert described["HOLDFAST_NETWORK"][0] == "false"


def test_every_setting_that_a_document_names_exists() -> None:
    for page in (PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")):
        for name in re.findall(r"HOLDFAST_[A-Z_]*[A-Z]", page.read_text()):
            assert name in SETTINGS or OF_TESTS.fullmatch(name), f"{page.name}: {name}"


def test_every_error_code_has_a_row_with_its_status(site: Path) -> None:
    described = tables(site, "reference/errors.html")[0]
    for code, status in STATUS.items():
        assert described[code][0] == str(status), code
        assert described[code][-1], code


def test_every_reason_has_a_row(site: Path) -> None:
    _, by_place, sentences = tables(site, "reference/errors.html")
    named = re.findall(r"\w+", str(by_place))
    assert {*SENTENCES, DIRECTORY_MISSING, DRAINING} <= set(named)
    assert all(sentences[reason] == [sentence] for reason, sentence in SENTENCES.items())


def test_every_command_has_a_section_with_its_own_options(site: Path) -> None:
    assert {f"holdfast {name}" for name in COMMANDS} <= set(headings(site, "reference/cli.html"))
    options = re.findall(r"--[a-z-]+", plain((site / "reference/cli.html").read_text()))
    assert {"--gitignore", "--exclude", "--expire-days", "--cwd"} <= set(options)


def test_every_route_and_document_has_a_section(site: Path) -> None:
    found = set(headings(site, "reference/rest.html"))
    routes = {f"{method.upper()} {path}" for path, row in description()["paths"].items() for method in row}
    assert len(routes) > 20 and routes <= found
    assert set(description()["components"]["schemas"]) <= found


def test_every_model_and_error_of_python_has_a_section(site: Path) -> None:
    found = sections(site)
    for module in (errors, models):
        for name, value in vars(module).items():
            if isinstance(value, type) and name.isidentifier() and value.__module__.startswith(module.__name__):
                assert name.startswith("_") or f"{value.__module__}.{name}" in found, name


@pytest.mark.parametrize(
    "kind", [client.Sandbox, client.SandboxCalls, client.ServiceCalls, client.Upload, Call, Stream]
)
def test_every_call_of_python_has_a_section(site: Path, kind: type) -> None:
    found = {".".join(section.split(".")[-2:]) for section in sections(site)}
    for name in vars(kind):
        assert name.startswith("_") or f"{kind.__name__}.{name}" in found, name


def sections(site: Path) -> set[str]:
    """The full names of everything that the reference of the Python client describes."""
    return set(re.findall(r'id="([\w.]+)"', (site / "reference/python.html").read_text()))


def test_every_metric_of_the_actors_has_a_row() -> None:
    page = (PROJECT / "docs/guides/operating.md").read_text()
    for metric in METRICS:
        assert re.search(rf"`{metric.name}(_total)?[`{{]", page), metric.name


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        source = page.read_text()
        for tag in re.findall(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", source):
            assert not re.search(r"""(?:src|href|data|srcset)\s*=\s*["']?(?:https?:)?//""", tag), tag
        assert 'class="mermaid"' not in source, "the theme loads what draws it from the network"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150
