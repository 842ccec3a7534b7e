"""MkDocs hooks: a reference page for each package, and links for the roles in docstrings."""

import ast
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("tfnlp", "jaxnlp")
SUBJECTS = ("model", "heads", "training", "distillation", "generation")
"""Modules of the engines that have separate pages."""

OPTIONS = "\n".join(
    ["    options:", "      inherited_members: [from_pretrained, from_config, save_pretrained, generate]", ""]
)
"""Options of the pages on models, whose methods come from mixins."""


def pages() -> dict[str, str]:
    """Return the module that each reference page documents, for every package and the top-level modules users import."""
    modules = {f"reference/{engine}/index.md": engine for engine in ENGINES}
    modules |= {f"reference/{e}/{s}.md": f"{e}.{s}" for e in ENGINES for s in SUBJECTS}
    neutral = ROOT / "shared" / "duonlp"
    for init in sorted(neutral.glob("*/__init__.py")):
        modules[f"reference/duonlp/{init.parent.name}.md"] = f"duonlp.{init.parent.name}"
    modules["reference/duonlp/training-log.md"] = "duonlp.training.log"
    for name in ("config", "errors", "inputs", "parity", "typing"):
        modules[f"reference/duonlp/{name}.md"] = f"duonlp.{name}"
    return {page: module for page, module in modules.items() if module not in ("duonlp.cli", "duonlp.util")}


def summary(module: str) -> str:
    """Return the first paragraph of a module's docstring, as one line."""
    path = ROOT / ("shared" if module.startswith("duonlp") else "") / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation, one entry per package."""
    groups: dict[str, list] = {"tfnlp": [], "jaxnlp": [], "duonlp": []}
    for page, module in pages().items():
        group = module.split(".")[0]
        groups[group].append(page if page.endswith("index.md") else {module: page})
    config.nav.append({"API reference": ["reference/index.md", *({group: found} for group, found in groups.items())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the reference pages, which hold nothing but a directive."""
    rows = [
        f"| [`{module}`]({page.removeprefix('reference/')}) | {summary(module)} |" for page, module in pages().items()
    ]
    index = "\n".join(["# API reference", "", "| package | contents |", "|---|---|", *rows, ""])
    files.append(File.generated(config, "reference/index.md", content=index))
    for page, module in pages().items():
        options = OPTIONS if module.endswith(".model") else ""
        files.append(File.generated(config, page, content=f"# `{module}`\n\n::: {module}\n{options}"))
    return files


class Roles(griffe.Extension):
    """Turn ``:func:`name``` and its kin in docstrings into code spans, which Markdown has."""

    ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrite the docstring of every object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = self.ROLE.sub(r"`\1`", obj.docstring.value)
