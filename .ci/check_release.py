"""Whether a tag may be released: python .ci/check_release.py v1.2.3"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def mistakes(tag: str, root: Path = ROOT) -> list[str]:
    """What is not ready for this tag."""
    version = tag.removeprefix("v")
    told = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    code = re.search(r'^__version__ = "(.*)"$', (root / "src/cifarnet/__init__.py").read_text(), flags=re.MULTILINE)
    found = []
    if tag != f"v{told}":
        found.append(f"pyproject.toml has version {told}, the tag is {tag}")
    if code is None or code[1] != told:
        found.append("src/cifarnet/__init__.py has another version than pyproject.toml")
    if f"\n## [{version}]" not in (root / "CHANGELOG.md").read_text():
        found.append(f"CHANGELOG.md has no section [{version}]")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(mistakes(sys.argv[1])) or 0)
