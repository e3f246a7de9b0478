"""Reads JSON bodies whose file names have bytes that are not UTF-8, written as in listings: `\\udc80` to `\\udcff`.

Python's json module writes and reads such text; pydantic's own reader refuses it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_RAW_BYTE = re.compile(rb"\\u[dD][cC][89a-fA-F]")


def with_raw_names(body: bytes) -> Any:
    """The document as Python values if it may hold such names, else None.

    Raises:
        ValueError: the body is no JSON, or holds half of a surrogate pair outside `\\udc80` to `\\udcff`.
        RecursionError: the body is nested too deeply.
    """
    if not _RAW_BYTE.search(body):
        return None
    document = json.loads(body.decode("utf-8"), parse_constant=_refused, parse_float=_finite)
    json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return document


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("the number is too large")
    return value
