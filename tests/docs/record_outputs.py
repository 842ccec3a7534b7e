"""Update the outputs of the Python blocks in docs/generation.md: ``python -m tests.docs.record_outputs DEMO``.

DEMO is the output folder of ``make demo``. Every block runs in both frameworks; it is an error if the outputs differ.
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
    """Run the blocks of a page in the current folder and return what each prints."""
    namespace: dict[str, object] = {"__name__": "generation"}
    printed = []
    for text in BLOCK.findall(page):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, PAGE.name, "exec"), namespace)
        printed.append("\n".join(line.rstrip() for line in out.getvalue().splitlines()))
    return printed


def main(demo: str) -> None:
    """Run the page in both frameworks and update its outputs and plots."""
    page, demo_folder = PAGE.read_text(encoding="utf-8"), Path(demo).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("demo").symlink_to(demo_folder)
        tf_outputs = outputs(page.replace("import jaxnlp as nlp", "import tfnlp as nlp"))
        jax_outputs = outputs(page)
        for plot in Path().glob("*.png"):
            shutil.copy(plot, PAGE.parent)
    for number, (ours, theirs) in enumerate(zip(jax_outputs, tf_outputs, strict=True)):
        if ours != theirs:
            sys.exit(f"the output of block {number} differs between the frameworks:\n{ours}\n---\n{theirs}")
    remaining = iter(jax_outputs)

    def fill(match: re.Match[str]) -> str:
        text = next(remaining)
        return f"```python\n{match[1]}```\n" + (f"\n```text\n{text}\n```\n" if text else "")

    PAGE.write_text(BLOCK.sub(fill, page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
