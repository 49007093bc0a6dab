"""Puts what ``python -m reproduce`` made into the repository: records under results/, pages and charts under docs/.

    python -m reproduce.publish reproduced/

Every table is written again, at every scale, from what the folder that ``--out`` named has, and for the rest from the
records that are published: one scale can be run and published alone. Every table names the commits of its numbers with
their days. The CSV and the records of times go to results/reproduce/, the charts to docs/tables/ and the Markdown to
the papers' pages of tables. The folder is left as it is.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import commit
from convattn.errors import UserError
from reproduce.catalogue import ENTRIES
from reproduce.entries import Entry
from reproduce.results import Results
from reproduce.writing import Writer

ROOT = Path(__file__).parent.parent
RECORDS = Path("results/reproduce")
CHARTS = "tables"
PAGES = {"acmix": "acmix-tables.md", "xvolution": "x-volution-tables.md"}
HEADS = {
    "acmix": (
        "# ACmix: tables and figures, published and measured\n\nThe page on the paper itself is [ACmix](paper.md)."
    ),
    "xvolution": (
        "# X-volution: tables and figures, published and measured\n\n"
        "The page on the paper itself is [X-volution](x-volution.md)."
    ),
}
ABOUT = """\
This page is generated: `python -m reproduce` made every number, and the records with each seed's own value are in
`results/reproduce/`. Gains are over the row that is marked as the baseline, seed by seed, with the interval of 95 % of
their mean. p is that of a paired t-test; the same corrected by Holm's method for all rows that the table compares in
one quantity; and that of Wilcoxon's signed-rank test, which with five seeds cannot fall below 0.0625, with three not
below 0.25 and with two not below 0.5.
"""


def page_of(paper: str, made: Path) -> str:
    """A paper's page: every table's Markdown one heading lower, and why the others are not computed."""
    parts = [f"{HEADS[paper]}\n\n{ABOUT}"]
    for entry in ENTRIES:
        if entry.paper == paper:
            parts.append(section(entry, made))
    return "\n".join(parts)


def section(entry: Entry, made: Path) -> str:
    """A table's part of a page."""
    if not entry.parts:
        return f"## {entry.number.capitalize()}\n\n{entry.caption}. Not computed. {entry.reason}\n"
    text = (made / f"{entry.id}.md").read_text(encoding="utf-8")
    text = text.replace(f"# {entry.title}\n", f"# {entry.number.capitalize()}\n")
    text = re.sub(r"^#", "##", text, flags=re.MULTILINE)
    return text.replace(f"]({entry.id}.png)", f"]({CHARTS}/{entry.id}.png)")


def write(made: Path, root: Path = ROOT) -> list[Path]:
    """Write all of it, and say what was written.

    Raises:
        UserError: a record that cannot be read; nothing is written then.
    """
    records, charts = root / RECORDS, root / "docs" / CHARTS
    written = []
    with tempfile.TemporaryDirectory() as place:
        drawn = Path(place)
        results = Results(made, other_code=True, commit=commit(), published=records)
        Writer(results, out=drawn).write()
        for folder in (records, charts):
            folder.mkdir(parents=True, exist_ok=True)
        for entry in ENTRIES:
            for source, folder in ((f"{entry.id}.csv", records), (f"{entry.id}.png", charts)):
                (folder / source).unlink(missing_ok=True)
                if (drawn / source).is_file():
                    written.append(Path(shutil.copy(drawn / source, folder)))
            if results.records(entry).is_dir():
                shutil.rmtree(records / "speed" / entry.id, ignore_errors=True)
                written.append(Path(shutil.copytree(results.records(entry), records / "speed" / entry.id)))
        for paper, name in PAGES.items():
            target = root / "docs" / name
            target.write_text(page_of(paper, drawn), encoding="utf-8")
            written.append(target)
    return written


def main() -> None:
    """The command."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "index.html").is_file():
        sys.exit("give the folder that 'python -m reproduce --out' wrote: python -m reproduce.publish reproduced/")
    try:
        for path in write(Path(sys.argv[1])):
            print(path.relative_to(ROOT))
    except UserError as error:
        print(f"reproduce.publish: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
