"""What pip has to be told so that it installs only files whose hashes are locked. Only the standard library.

    python locked.py [--project pyproject.toml] [EXTRA …]                  requirements of the project and these extras
    python locked.py [--lock constraints.txt] --entry pip                  one package's locked entry, with its hashes

The first is for ``pip install --require-hashes --constraint constraints.txt --requirement FILE``, and needs the pip of
the second: older ones do not look at hashes in constraints.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """What pyproject.toml asks for, the project itself left out.

    Raises:
        KeyError: it has no such extra; names it.
    """
    asked = tomllib.loads(project.read_text())["project"]
    known = asked["optional-dependencies"]
    return sorted({*asked["dependencies"], *(line for extra in extras for line in known[extra])})


def build_requirements(project: Path) -> list[str]:
    """What building the project's wheel needs."""
    return sorted(tomllib.loads(project.read_text())["build-system"]["requires"])


def entry(lock: Path, name: str) -> str:
    """A package's version and hashes, as a requirements file has them.

    Raises:
        KeyError: it is not locked.
    """
    found = re.search(rf"(?m)^{re.escape(name)}==(?:.*\\\n)*.*", lock.read_text())
    if found is None:
        raise KeyError(name)
    return found[0] + "\n"


def main() -> int:
    """Command line: 1 when there is no such extra or entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--project", type=Path, default=Path("pyproject.toml"))
    parser.add_argument("--lock", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--entry", help="a package whose locked entry is printed instead")
    parser.add_argument("--build", action="store_true", help="what building the wheel needs instead")
    options = parser.parse_args()
    try:
        if options.entry:
            print(entry(options.lock, options.entry), end="")
        else:
            asked = (
                build_requirements(options.project) if options.build else requirements(options.project, options.extras)
            )
            print("\n".join(asked))
    except KeyError as error:
        print(f"neither an extra of {options.project} nor a package in {options.lock}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
