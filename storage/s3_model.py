"""botocore's description of S3, without its documentation and the endpoints of other services.

Each process of a sandbox holds this description. botocore reads it whole: 15 MB, of which 10 are the texts of the
documentation and the endpoints of all of Amazon's services (own measurement). Our clients name their endpoint.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from botocore.loaders import JSONFileLoader

_ENDPOINTS = {
    "version": 3,
    "partitions": [
        {
            "partition": "aws",
            "partitionName": "AWS Standard",
            "dnsSuffix": "amazonaws.com",
            "regionRegex": "^.*$",
            "defaults": {"hostname": "{service}.{region}.{dnsSuffix}", "protocols": ["https"]},
            "regions": {},
            "services": {
                "s3": {
                    "defaults": {"protocols": ["http", "https"], "signatureVersions": ["s3v4"]},
                    "endpoints": {"aws-global": {"credentialScope": {"region": "us-east-1"}}},
                    "isRegionalized": True,
                    "partitionEndpoint": "aws-global",
                }
            },
        }
    ],
}
"""botocore's table of endpoints, with S3 alone, in any region."""


class S3ModelFiles(JSONFileLoader):
    """The files of botocore's models, without what a client of S3 does not use."""

    def load_file(self, file_path: str) -> Any:
        """The content of a file, whose path has no suffix; None if there is no such file."""
        if Path(file_path).name == "endpoints":
            return _ENDPOINTS
        plain, packed = Path(f"{file_path}.json"), Path(f"{file_path}.json.gz")
        if plain.is_file():
            text = plain.read_bytes()
        elif packed.is_file():
            text = gzip.decompress(packed.read_bytes())
        else:
            return None
        return json.loads(text, object_pairs_hook=_without_texts)


def _without_texts(members: list[tuple[str, Any]]) -> dict[str, Any]:
    # What describes a member of that name is no text.
    return {
        sys.intern(name): "" if name == "documentation" and isinstance(value, str) else value for name, value in members
    }
