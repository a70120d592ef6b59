"""Print the folders of distributions of the workspace, and of those of it that they need."""

import re
import sys
import tomllib
from pathlib import Path


def main(wanted: list[str]) -> None:
    """Print one folder per line; ``wanted`` are names of distributions."""
    projects = {}
    for file in [
        Path("kernel/pyproject.toml"),
        *sorted(Path("plugins").glob("*/*/pyproject.toml")),
    ]:
        project = tomllib.loads(file.read_text())["project"]
        projects[project["name"]] = (file.parent, project["dependencies"])
    found: list[str] = []
    while wanted:
        name = wanted.pop(0)
        if name in projects and name not in found:
            found.append(name)
            wanted += [re.match(r"[A-Za-z0-9._-]+", line)[0] for line in projects[name][1]]
    print("\n".join(str(projects[name][0]) for name in sorted(found)))


main(sys.argv[1:])
