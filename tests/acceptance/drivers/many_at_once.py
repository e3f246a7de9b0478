"""Very many calls to one sandbox at the same instant; each call that is served writes its number into a file.

Arguments: path of the report, number of calls. Reports how the calls ended, and which were served.
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
    """Makes one call, whose command ends as soon as the file `go` exists."""
    script = f"while [ ! -e go ]; do sleep 0.1; done; echo {number} >> numbers"
    try:
        events = box.calls.exec(ExecRequest(argv=["sh", "-c", script]))
        codes = [event.exit_code async for event in events if isinstance(event, Exit)]
    except TooManyCallsError:
        return "refused"
    except HoldfastError as e:
        return e.code
    return "served" if codes == [0] else f"ended with {codes}"


async def touch(box: Sandbox, path: str) -> None:
    upload = await box.calls.write_file(path)
    await upload.commit()


async def main(calls: int) -> dict[str, object]:
    box = get_sandbox("crowded")
    await touch(box, "/workspace/numbers")
    asked = {asyncio.create_task(call(box, number)): number for number in range(calls)}
    _, others = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)  # the first to end is a refused call
    await touch(box, "/workspace/go")
    if others:
        await asyncio.wait(others)
    outcomes = {number: task.result() for task, number in asked.items()}
    written = Counter(
        int(line) for line in b"".join([piece async for piece in box.calls.read_file("/workspace/numbers")]).split()
    )
    later = await call(box, calls)
    await box.calls.destroy()
    return {
        "ended": Counter(outcomes.values()),
        "served": [number for number, outcome in outcomes.items() if outcome == "served"],
        "written": sorted(written),
        "twice": [number for number, count in written.items() if count > 1],
        "later": later,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main(int(sys.argv[2])))))
