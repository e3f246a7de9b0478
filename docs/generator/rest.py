"""The reference of the REST routes, from the gateway's OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeAlias

from pydantic import SecretStr

from docs.generator.markdown import code, table
from gateway.app import create_app
from gateway.config import GatewayConfig

Json: TypeAlias = Mapping[str, Any]

_REFERENCES = "#/components/schemas/"
_NOT_HTML = str.maketrans({"<": "&lt;", ">": "&gt;"})


def routes() -> str:
    """A section for each route: its parameters, its body and its answers."""
    return "\n".join(
        _route(method, path, operation)
        for path, operations in description()["paths"].items()
        for method, operation in operations.items()
    )


def documents() -> str:
    """A section for each JSON document that routes answer with."""
    return "\n".join(
        f"### {name}\n\n{_text(schema)}\n{_fields(schema)}"
        for name, schema in description()["components"]["schemas"].items()
    )


@cache
def description() -> Json:
    """The OpenAPI document. No cluster is needed for it."""
    config = GatewayConfig(keys_by_tenant={"default": SecretStr("not used")})
    document: Json = create_app(config).openapi()
    return document


def _route(method: str, path: str, operation: Json) -> str:
    parts = [f"### `{method.upper()} {path}`\n", _text(operation)]
    if parameters := operation.get("parameters"):
        parts += ["**Parameters**\n", table(("Name", "In", "Type", "Meaning"), map(_parameter, parameters))]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        parts += [f"**Body**: `{kind}`\n", _text(schema), _fields(schema)]
    parts += ["**Answers**\n", table(("Status", "Content", "Meaning"), _answers(operation))]
    return "\n".join(part for part in parts if part)


def _parameter(parameter: Json) -> tuple[str, ...]:
    name = code(parameter["name"]) + ("" if parameter["required"] else " (optional)")
    return name, parameter["in"], _type(parameter["schema"]), parameter.get("description", "")


def _answers(operation: Json) -> Iterator[tuple[str, ...]]:
    for status, answer in operation["responses"].items():
        for kind, content in answer.get("content", {"": {}}).items():
            schema = content.get("schema", {})
            shown = f"{code(kind)} {_type(schema)}" if "$ref" in schema else code(kind)
            yield "an error" if status == "default" else status, shown, answer["description"]


def _fields(schema: Json) -> str:
    """The table of an object's fields, or the values of an enumeration."""
    if "enum" in schema:
        return "One of " + ", ".join(map(code, schema["enum"])) + ".\n"
    rows = list(_rows(schema))
    return table(("Field", "Type", "Meaning"), rows) if rows else ""


def _rows(schema: Json, within: str = "") -> Iterator[tuple[str, ...]]:
    """A row for each field of an object, and of the objects within it that have no section of their own."""
    for name, field in schema.get("properties", {}).items():
        shown = code(within + name) + ("" if name in schema.get("required", ()) else " (optional)")
        yield shown, _type(field), field.get("description", "") or _form(field)
        yield from _rows(field, f"{within}{name}.")


def _form(field: Json) -> str:
    """The pattern of a text, where there is one."""
    return f"matches {code(field['pattern'])}" if "pattern" in field else ""


def _type(schema: Json) -> str:
    """The type of a value in words, with a link to the section of a named document."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if schema["$ref"].startswith(_REFERENCES) else code(name)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    if "const" in schema:
        return code(schema["const"])
    kind = {"array": "list", "null": "null"}.get(schema.get("type", ""), schema.get("type", "any value"))
    of = f" of {_type(schema['items'])}" if schema.get("items") else ""
    default = schema.get("default")
    return f"{kind}{of}" + (f", by default {code(json.dumps(default))}" if default not in (None, [], {}) else "")


def _text(described: Json) -> str:
    return described.get("description", "").translate(_NOT_HTML) + "\n" if described.get("description") else ""
