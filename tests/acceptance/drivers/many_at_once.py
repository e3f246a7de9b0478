"""Very many calls to one sandbox in the same instant: each that is served leaves its number in a file.

Arguments: where to write the report, how many calls. Reports how they ended, and which were served.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

from actors.client import Sandbox, get_sandbox
from actors.errors import HoldfastError, TooManyCallsError
from actors.models import ExecRequest, Exit


async def call(box: Sandbox, number: int) -> str:
    request = ExecRequest(argv=["sh", "-c", f"echo {number} >> numbers"])
    try:
        codes = [event.exit_code async for event in box.calls.exec(request) if isinstance(event, Exit)]
    except TooManyCallsError:
        return "refused"
    except HoldfastError as e:
        return e.code
    return "served" if codes == [0] else f"ended with {codes}"


async def main(calls: int) -> dict[str, object]:
    box = get_sandbox("crowded")
    await call(box, -1)
    ended = await asyncio.gather(*(call(box, number) for number in range(calls)))
    written = Counter(
        int(line) for line in b"".join([piece async for piece in box.calls.read_file("/workspace/numbers")]).split()
    )
    later = await call(box, calls)
    await box.calls.destroy()
    return {
        "ended": Counter(ended),
        "served": [number for number, outcome in enumerate(ended) if outcome == "served"],
        "written": sorted(set(written) - {-1}),
        "twice": [number for number, count in written.items() if count > 1],
        "later": later,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main(int(sys.argv[2])))))
