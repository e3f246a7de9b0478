"""A check before every route: refuses, and never ignores, parts of a request that the route does not know.

If `?excludes=` were ignored, a client would find its secrets in the archive. So a request may have only what its route
has declared: no other query parameter, none twice, no body where it takes none, and none of the headers below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from types import MappingProxyType
from typing import get_origin
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from actors.models import Model
from gateway.body import parsed
from gateway.errors import NotUnderstoodError

_WRITES = frozenset({"POST", "PUT", "DELETE"})
_REFUSED = MappingProxyType(
    {
        "session-id": "There are no sessions: each command runs in a container of its own.",
        "idempotency-key": "Only POST /v1/sandbox/{id}/backup takes an idempotency key.",
        "content-encoding": "Bodies are taken as they are; send this one without a content encoding.",
        "content-range": "A file can only be written whole.",
        "if-match": "Writing cannot be made to depend on what is there.",
        "if-none-match": "Writing cannot be made to depend on what is there.",
        "if-unmodified-since": "Writing cannot be made to depend on what is there.",
    }
)
"""Headers that change the meaning of a request, with the reasons why they are refused."""
_REFUSED_IN_READS = frozenset({"session-id"})
"""Headers refused in reads. A server that answers in full may ignore the others.

Source: RFC 9110, sections 8.4, 13.1 and 14.4.
"""


class _Nothing(Model):
    """The body of a request to a route that takes none: left out, or an empty object."""


async def _understood(request: Request) -> None:
    route: APIRoute = request.scope["route"]
    declared = list(_declared(route.dependant))
    known = {field.alias: field.field_info.annotation for each in declared for field in each.query_params}
    _check_query(request, known, repeatable={name for name, kind in known.items() if get_origin(kind) is list})
    _check_headers(request, {field.alias.lower() for each in declared for field in each.header_params})
    if "requestBody" not in (route.openapi_extra or {}):
        await parsed(request, _Nothing, empty=_Nothing())


UNDERSTOOD = Depends(_understood)
"""The check, for every route. Raises NotUnderstoodError."""


def _declared(dependant: Dependant) -> Iterator[Dependant]:
    """Yields a route and all its dependencies, each with the parameters that it has declared."""
    yield dependant
    for each in dependant.dependencies:
        yield from _declared(each)


def _check_query(request: Request, known: Collection[str], *, repeatable: set[str]) -> None:
    query = request.scope["query_string"].decode("latin-1")
    given = Counter(name for name, _ in parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise NotUnderstoodError(
            f"This route has no query parameter {_quoted(unknown)}.",
            hint=f"It has {_quoted(sorted(known))}." if known else "It has none. See /docs.",
            context={"parameters": [name[:200] for name in unknown[:20]]},
        )
    several = sorted(name for name in set(known) - repeatable if given[name] > 1)
    if several:
        raise NotUnderstoodError(
            f"The query parameter {_quoted(several)} was given more than once.", context={"parameters": several}
        )


def _check_headers(request: Request, known: set[str]) -> None:
    refused = (_REFUSED.keys() if request.method in _WRITES else _REFUSED_IN_READS) - known
    for name in sorted(refused & set(request.headers.keys())):
        if name == "content-encoding" and request.headers[name].strip().lower() in ("", "identity"):
            continue
        raise NotUnderstoodError(
            f"The header {name.title()} is not understood here: {_REFUSED[name]}",
            hint="Send the request without it.",
            context={"header": name},
        )


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name[:200]}'" for name in names[:20])
