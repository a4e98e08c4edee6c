"""Make the links of a README lead to the repository that it is released from, so that they work on its package page.

python .ci/absolute_links.py README.md https://HOST/OWNER/NAME v1.2.3
"""

import re
import sys
from pathlib import Path


def absolute(text: str, repository: str, ref: str) -> str:
    """Links to files of the repository as links to them at ``ref``; pictures as the files themselves."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({repository}/{kind}/{ref}/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)]+)\)", link, text)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(absolute(file.read_text(), *sys.argv[2:]))
