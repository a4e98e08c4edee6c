"""Check that a tag may be released: python .ci/check_release.py v1.2.3"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def mistakes(tag: str, root: Path = ROOT) -> list[str]:
    """Return the reasons why the tag cannot be released."""
    version = tag.removeprefix("v")
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    code = re.search(r'^__version__ = "(.*)"$', (root / "src/cifarnet/__init__.py").read_text(), flags=re.MULTILINE)
    found = []
    if tag != f"v{declared}":
        found.append(f"pyproject.toml has version {declared}, the tag is {tag}")
    if code is None or code[1] != declared:
        found.append("src/cifarnet/__init__.py has another version than pyproject.toml")
    if f"\n## [{version}]" not in (root / "CHANGELOG.md").read_text():
        found.append(f"CHANGELOG.md has no section [{version}]")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(mistakes(sys.argv[1])) or 0)
