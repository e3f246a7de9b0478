"""Reads `client.env`, the file in the data folder with the variables by which clients here find the cluster.

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

    Call it before Ray is imported, which reads these names once. It ignores the file if it is missing or
    unreadable, or if RAY_ADDRESS names another cluster, for which its credentials would be wrong.

    Raises:
        InvalidRequestError: `data_dir` is given and is no directory.
    """
    if data_dir is None:
        from actors.settings import read_settings

        data_dir = read_settings().data_dir
    elif not os.path.isdir(data_dir):
        raise InvalidRequestError(f"{data_dir} is no directory, or cannot be reached.")
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
