"""The file `client.env` of the data folder: the variables by which clients on this machine find its cluster.

`holdfast serve` writes it; the command line reads it.
"""

from __future__ import annotations

import os
from pathlib import Path

from actors.errors import InvalidRequestError

CLIENT_ENV = "client.env"
CLIENT_SETTINGS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


def read_client_env(data_dir: Path | None = None) -> None:
    """Adds the variables that `holdfast serve` wrote for its clients to the environment. Variables already set win.

    Call it before Ray is imported, which reads these names once. It ignores a file that is absent or unreadable, and
    one for another cluster than RAY_ADDRESS names, whose credentials would be wrong.

    Raises:
        InvalidRequestError: the folder was given, and is not there.
    """
    if data_dir is None:
        from actors.settings import read_settings

        data_dir = read_settings().data_dir
    elif not os.path.isdir(data_dir):
        raise InvalidRequestError(f"{data_dir} is no directory that can be read.")
    try:
        text = (data_dir / CLIENT_ENV).read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    left = {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}
    address = left.get("RAY_ADDRESS", "")
    if os.environ.get("RAY_ADDRESS", address) != address:
        return
    for name in CLIENT_SETTINGS:
        if name in left:
            os.environ.setdefault(name, left[name])
