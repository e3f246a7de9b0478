"""The tables of errors and of reasons, from the classes of errors, `gateway.status` and `actors.faults`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from actors import errors as actors_errors
from actors.errors import HoldfastError
from actors.faults import SENTENCES
from docs.generator.markdown import code, table
from gateway import errors as gateway_errors
from gateway.status import STATUS


def errors() -> str:
    """One row for each code: its status, its class, whether a retry may help, and the circumstance."""
    rows = [
        (
            code(kind.code),
            str(STATUS[kind.code]),
            _name(kind),
            "yes" if kind.retryable else "",
            inspect.getdoc(kind) or "",
        )
        for kind in sorted(_kinds(), key=lambda kind: (STATUS[kind.code], kind.code))
    ]
    return table(("Code", "Status", "Class", "Retry", "Circumstance"), rows)


def reasons() -> str:
    """One row for each reason of storage or of the node: the sentence in the error's message."""
    return table(("Reason", "Sentence"), [(code(reason), said) for reason, said in sorted(SENTENCES.items())])


def _kinds() -> Iterator[type[HoldfastError]]:
    """The class of each code: all but the root, and the subclasses that keep their parent's code."""
    for module in (actors_errors, gateway_errors):
        for kind in vars(module).values():
            is_error = inspect.isclass(kind) and issubclass(kind, HoldfastError) and kind is not HoldfastError
            if is_error and kind.__module__ == module.__name__ and "code" in vars(kind):
                yield kind


def _name(kind: type[HoldfastError]) -> str:
    """The class's name, where callers can import it. Errors of HTTP have only a code."""
    return code(kind.__name__) if kind.__module__ == actors_errors.__name__ else ""
