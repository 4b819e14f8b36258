"""Adds the addresses of the project to a package. Hatchling calls this while it builds one.

The source has no fixed public address: it is where the repository is hosted that the package is built from. GitHub Actions
passes that address to a build. A package that is built elsewhere has no addresses.
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = {
    "Source": "",
    "Documentation": "/blob/main/docs/README.md",
    "Changelog": "/blob/main/CHANGELOG.md",
    "Issues": "/issues",
    "Security": "/security/policy",
}


class Urls(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
        metadata["urls"] = {name: f"{server}/{repository}{path}" for name, path in PAGES.items()} if server and repository else {}
