"""The examples of the documents: each fenced block of README.md and of the pages in docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md")))
LANGUAGES = ("sh", "python", "console")
PROMPT = "$ "

NOT_RUN: Mapping[str, str] = {
    "make demo": "it runs for minutes, and has a CI step of its own",
    "holdfast serve": "the tests' service is started before the examples, on another port",
    "docker run": "it needs Docker; tests/acceptance/test_container_matrix.py makes containers with these privileges",
    "ray up": "it needs a cloud, or machines of one's own",
    "holdfast serve --address": "the examples run on the service of one machine",
    "kubectl apply": "it needs Kubernetes",
    "ray list": "it needs a cluster of several nodes; tests/integration/test_cluster.py drains some",
    "cp scripts/holdfast.service": "it needs systemd as the first process",
    "systemd-run": "it needs systemd as the first process",
    "holdfast lifecycle": "the embedded store has no lifecycle rules",
}
"""The beginning of the first command of each block that no test runs, and the reason. Such blocks are checked unrun."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a shell's block: of a transcript, what stands after each prompt."""
        return [command for command, _ in self.transcript] if self.language == "console" else [self.text]

    @property
    def transcript(self) -> list[tuple[str, str]]:
        """Each command of a transcript, with the output that is shown below it."""
        entries: list[tuple[str, str]] = []
        continues = False
        for line in self.text.splitlines(keepends=True):
            if line.startswith(PROMPT):
                entries.append((line.removeprefix(PROMPT), ""))
            else:
                command, output = entries.pop()
                entries.append((command + line, output) if continues else (command, output + line))
            continues = line.endswith("\\\n") and not entries[-1][1]
        return entries

    @property
    def reason_not_run(self) -> str | None:
        """The reason why no test runs the block; None if one does. The longest entry that fits counts."""
        fitting = [begin for begin in NOT_RUN if f"{self.commands[0].rstrip()} ".startswith(f"{begin} ")]
        return NOT_RUN[max(fitting, key=len)] if fitting else None


def blocks() -> Iterator[Block]:
    """All blocks, in the order of the pages. A picture is a block without a language."""
    for page in PAGES:
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            yield Block(page.relative_to(PROJECT).as_posix(), language, text)


def pattern(shown: str) -> re.Pattern[str]:
    """Matches an output that a document shows: `…` stands for any text within a line, or for any lines."""
    lines = [
        "(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n" for line in shown.splitlines()
    ]
    return re.compile("".join(lines))
