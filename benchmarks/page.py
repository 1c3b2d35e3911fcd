"""Puts the tables of results/small into README.md and docs/results.md, between the comments that name them.

python benchmarks/page.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES, TABLES = (ROOT / "README.md", ROOT / "docs" / "results.md"), ROOT / "results" / "small"
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.S)


def filled(page: str) -> str:
    """The page with each table as it stands in its file, without its title."""

    def table(place: re.Match[str]) -> str:
        lines = (TABLES / f"{place[2]}.md").read_text(encoding="utf-8").splitlines()
        return place[1] + "\n".join(lines[1:]).strip("\n") + "\n" + place[3]

    return PLACE.sub(table, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
