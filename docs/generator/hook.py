"""The hook of mkdocs: puts a generated part in the place of each line `<!-- generated: NAME -->` of a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from docs.generator.commands import commands
from docs.generator.errors import errors, reasons
from docs.generator.rest import documents, routes
from docs.generator.settings import settings

PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "documents": documents,
    "errors": errors,
    "reasons": reasons,
    "routes": routes,
    "settings": settings,
}
"""The function that makes each part, as Markdown."""

_PLACE = re.compile(r"^<!-- generated: (\w+) -->$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the page with its generated parts. Raises KeyError for a part that does not exist."""
    return _PLACE.sub(lambda place: PARTS[place[1]](), markdown)
