"""``duonlp augment``: a file of texts in, changed copies of its rows out."""

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duonlp.cli.common import Debug, Framework, Json, Model, TaskOption, cli_option, parsed_options, print_json
from duonlp.cli.training import Encoding, Quoting, TextColumn
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.files import replacing
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.json_text import to_json
from duonlp.util.suggestions import choice, nearest

if TYPE_CHECKING:
    from duonlp.augmentation import Augmenter

METHODS = ("masked", "synonyms", "edits", "back-translation")


def augment(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Texts, labeled or not: a table, a folder or a Hub id (required).")
    ] = "",
    method: Annotated[str, cli_option(help="masked, synonyms, edits or back-translation (required).")] = "",
    model: Model = "",
    backward_model: Annotated[
        str, cli_option(help="Checkpoint that translates back, for back-translation: a folder or a Hub id.")
    ] = "",
    framework: Framework = "",
    per_text: Annotated[int, cli_option(help="Number of copies of each row (default 1).")] = 1,
    output: Annotated[str, cli_option(help="File to write the copies to, a .jsonl file (required).")] = "",
    seed: Annotated[int, cli_option(help="Seed of the copies (default 0).")] = 0,
    share: Annotated[
        float | None, cli_option(help="Share of the words to change, by default 0.15 for masked and 0.1 for others.")
    ] = None,
    synonyms: Annotated[str, cli_option(help="JSON file of words with their synonyms (default: WordNet).")] = "",
    protect: Annotated[
        list[str] | None, cli_option(help="Word or phrase that never changes, such as a label's name; repeatable.")
    ] = None,
    originals: Annotated[bool, cli_option("--originals", help="Also write each row itself before its copies.")] = False,
    keep_unchanged: Annotated[bool, cli_option("--keep-unchanged", help="Also write copies that are not new.")] = False,
    cache: Annotated[str, cli_option(help="Folder to keep copies in, so that they are made only once.")] = "",
    split: Annotated[str, cli_option(help="Split of the data, if it has several.")] = "",
    text_column: TextColumn = None,
    encoding: Encoding = None,
    quoting: Quoting = None,
    option: TaskOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write changed copies of texts, for training: substituted words, random edits or back-translations."""
    from duonlp.augmentation import cached
    from duonlp.augmentation.rows import augment_rows, read_rows
    from duonlp.data import CleaningReport

    if not file:
        raise InputError("no texts given; name a table with a text column")
    if not method:
        raise InputError(f"no method given; pass --method with one of {', '.join(METHODS)}")
    choice("--method", method, METHODS)
    if not output.endswith(".jsonl"):
        raise InputError(f"--output is {output!r}; give a file that ends in .jsonl")
    report = CleaningReport()
    settings = {"share": share, "protect": protect or [], "synonyms": synonyms, **parsed_options(option or [])}
    with quiet_stdout():
        rows = read_rows(
            file, split or None, text_column=text_column, encoding=encoding, quoting=quoting, report=report
        )
        augmenter = make_augmenter(method, settings, model, backward_model, framework)
        augmenter = cached(augmenter, cache) if cache else augmenter
        start = time.monotonic()
        with replacing(output) as stream:  # opened first, so that a folder that cannot be written shows at once
            result, counts = augment_rows(
                rows, augmenter, per_text, seed=seed, originals=originals, keep_unchanged=keep_unchanged
            )
            for row in result:
                stream.write(to_json(row).encode() + b"\n")
    seconds = time.monotonic() - start
    summary = {
        "file": file, "method": method, "output": output, "rows": counts.texts, "copies": counts.copies, "new": counts.new,
        "unchanged": counts.unchanged, "repeated": counts.repeated, "written": len(result), "seconds": round(seconds, 3),
        "rows_per_second": round(counts.texts / max(seconds, 1e-9), 3), "dropped": report.to_dict()["dropped"],
    }  # fmt: skip
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


def make_augmenter(
    method: str, settings: Mapping[str, Any], model: str, backward_model: str, framework: str
) -> "Augmenter":
    """Return the augmenter of a method.

    Args:
        method: One of METHODS.
        settings: Share, protect and synonyms from the flags, and further settings of the augmenter's class.
        model: Checkpoint of a masked language model, or of a translator.
        backward_model: Checkpoint of the translator back.
        framework: tf or jax; "" for the installed one.

    Raises:
        InputError: A setting is unknown or out of range, or a checkpoint is missing or of no use.
    """
    from duonlp.augmentation import BackTranslation, MaskedSubstitution, Protection, RandomEdits, Synonyms

    settings = dict(settings)
    words, share, table = settings.pop("protect"), settings.pop("share"), settings.pop("synonyms")
    unused = {
        "--model": model and method in ("synonyms", "edits"),
        "--backward-model": backward_model and method != "back-translation",
        "--synonyms": table and method not in ("synonyms", "edits"),
        "--share": share is not None and method == "back-translation",
    }
    for flag, is_unused in unused.items():
        if is_unused:
            raise InputError(f"{flag} has no effect with --method {method}; leave it out")
    if method in ("masked", "back-translation") and not model:
        raise InputError(
            f"--method {method} needs a model; pass --model with a folder in Hugging Face layout, or a Hub id"
        )
    if method == "back-translation" and not backward_model:
        raise InputError("--method back-translation needs a second model; pass it with --backward-model")
    cls: Any = dict(zip(METHODS, (MaskedSubstitution, Synonyms, RandomEdits, BackTranslation), strict=True))[method]
    own = ("pipe", "forward", "backward", "source", "protect", "synonyms", "share", "alpha")
    allowed = [field.name for field in fields(cls) if field.name not in own]
    for name in settings:
        if name not in allowed:
            raise InputError(f"{method} has no option {name!r}; it has {', '.join(allowed)}{nearest(name, allowed)}")
    settings["protect"] = Protection(words=words)
    if method == "synonyms":
        return cls(table or None, **({} if share is None else {"share": share}), **settings)
    if method == "edits":
        alpha = {} if share is None else {"alpha": share}
        return cls(**alpha, synonyms=Synonyms(table) if table else None, **settings)
    package, _ = load_package(framework)
    if method == "masked":
        pipe = package.pipeline("fill-mask", model)
        return cls(pipe, **({} if share is None else {"share": share}), **settings)
    return cls(package.pipeline("translation", model), package.pipeline("translation", backward_model), **settings)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what was written, which copies are not new, and why rows were dropped."""
    console = plain_console()
    console.print(
        f"{summary['written']:,} rows in {summary['output']}: {summary['new']:,} new copies of {summary['rows']:,} rows "
        f"in {summary['seconds']:.1f} s",
        soft_wrap=True,
    )
    if summary["unchanged"] or summary["repeated"]:
        console.print(
            f"not new: {summary['unchanged']:,} copies equal to their row, {summary['repeated']:,} to an earlier copy"
        )
    for reason, entry in summary["dropped"].items():
        console.print(f"dropped rows, {reason}: {entry['documents']:,}")
