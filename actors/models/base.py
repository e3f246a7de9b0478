"""The base of all models, and the validation of values that a caller gave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.errors import InvalidRequestError

Count = Annotated[int, Field(ge=0)]


class Model(BaseModel):
    """The base of all models here: immutable, strict, closed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


M = TypeVar("M", bound=BaseModel)
_KIND = re.compile(r"(function-\w+|list)\[.*\]|<\w+>")


def validated(model: type[M], values: Mapping[str, Any], error: type[InvalidRequestError] = InvalidRequestError) -> M:
    """Builds `model` from caller-supplied values, with the caller's kind of error.

    Raises:
        InvalidRequestError: (as `error`) naming each bad field and what is wrong with it.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as e:
        raise invalid(e, error) from None


def invalid(e: ValidationError, error: type[InvalidRequestError] = InvalidRequestError) -> InvalidRequestError:
    """One sentence and one context entry per field, out of pydantic's report; never the offending values."""
    fields: dict[str, str] = {}
    for line in e.errors():
        place, said = _place(line["loc"]) or "body", line["msg"].removeprefix("Value error, ")
        fields[place] = f"{fields[place]}, or {said}" if place in fields else said
    sentence = "; ".join(f"{name}: {message}" for name, message in fields.items())
    return error(f"Invalid request: {sentence}.", context={"fields": fields})


def _place(loc: tuple[int | str, ...]) -> str:
    """The field that an error is about, without the names of the kinds that it might have."""
    return ".".join(str(part) for part in loc if not _KIND.fullmatch(str(part)))


def listed(name: str, values: Sequence[str], error: type[InvalidRequestError] = InvalidRequestError) -> list[str]:
    """The values as a list. Raises `error` for text, which Python would take for the list of its letters."""
    if isinstance(values, str | bytes):
        raise error(f"Invalid request: {name}: must be a list of texts, not one text.", context={"field": name})
    return list(values)
