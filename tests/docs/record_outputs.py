"""Fill in what the Python blocks of docs/generation.md print: ``python -m tests.docs.record_outputs DEMO``.

DEMO is the folder ``make demo`` wrote. Every block runs in both frameworks; a difference between them is an error.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/generation.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", re.M | re.S)


def outputs(page: str) -> list[str]:
    """What each block prints, run in the current folder."""
    namespace, printed = {"__name__": "generation"}, []
    for text in BLOCK.findall(page):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, PAGE.name, "exec"), namespace)
        printed.append("\n".join(line.rstrip() for line in out.getvalue().splitlines()))
    return printed


def main(demo: str) -> None:
    """Run the page in both frameworks and write it back."""
    page, demo = PAGE.read_text(encoding="utf-8"), Path(demo).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("demo").symlink_to(demo)
        other = outputs(page.replace("import jaxnlp as nlp", "import tfnlp as nlp"))
        printed = outputs(page)
        for plot in Path().glob("*.png"):
            shutil.copy(plot, PAGE.parent)
    for number, pair in enumerate(zip(printed, other, strict=True)):
        if pair[0] != pair[1]:
            sys.exit(f"block {number} differs between the frameworks:\n{pair[0]}\n---\n{pair[1]}")
    left = iter(printed)

    def fill(match):
        text = next(left)
        return f"```python\n{match[1]}```\n" + (f"\n```text\n{text}\n```\n" if text else "")

    PAGE.write_text(BLOCK.sub(fill, page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
