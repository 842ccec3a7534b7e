"""A corpus cleaned as CodeParrot's was: licences, filters, duplicates exact and near, and secrets masked; all of it counted."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from duonlp.data.cleaning.duplicates import NearDuplicateConfig, NearDuplicates, content_digest, signature
from duonlp.data.cleaning.filters import FilterConfig, reason_to_drop
from duonlp.data.cleaning.licences import LicenceConfig, licence_reason_to_drop
from duonlp.data.cleaning.masking import MaskingConfig, mask
from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading.document_files import Problems, is_readable
from duonlp.data.reading.documents import Document
from duonlp.errors import InputError

DOCUMENTS_AT_A_TIME = 64


@dataclass(frozen=True)
class CleaningConfig:
    """What cleaning does, in this order; None leaves a part out.

    licences: which licences are allowed; every document by default, whatever its licence.
    filters: size, line lengths, alphanumeric share and what else tells code from data.
    exact_duplicates: drop a document whose text, white space apart, has been seen and kept so far.
    near_duplicates: drop a document that is nearly the same as one that was kept.
    masking: e-mail addresses and secrets, in the documents that are kept.

    Raises:
        InputError: a part is of another type.
    """

    licences: LicenceConfig | None = None
    filters: FilterConfig | None = field(default_factory=FilterConfig)
    exact_duplicates: bool = True
    near_duplicates: NearDuplicateConfig | None = field(default_factory=NearDuplicateConfig)
    masking: MaskingConfig | None = field(default_factory=MaskingConfig)

    def __post_init__(self):
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InputError(f"{name} is {value!r}; give a {kind.__name__}, or None to leave it out")


_PARTS = {
    "licences": LicenceConfig,
    "filters": FilterConfig,
    "near_duplicates": NearDuplicateConfig,
    "masking": MaskingConfig,
}


def clean(
    documents: Iterable[Document],
    config: CleaningConfig | None = None,
    report: CleaningReport | None = None,
    *,
    workers: int = 1,
) -> Iterator[Document]:
    """Yields the documents that are kept, masked, in their order; the report fills as they come.

    Of duplicates the first is kept. The same documents in the same order give the same result with any number of
    workers. Split what comes out (`duonlp.data.write_splits`), not what goes in: then no held-out document is nearly the same as
    one that is trained on.

    Args:
        documents: of any source, such as `read_documents`; read as they are needed.
        config: what to do; everything but the licences by default.
        report: where it is said what was dropped and why; the one that `read_documents` was given, to have all in one.
        workers: processes that filter, hash and mask; 1 for none but this one. They are started afresh, so that a
            program that asks for more keeps its own start under `if __name__ == "__main__":`.

    Raises:
        InputError: `workers` is below 1.
        MissingExtraError: a library that a part of the config needs is not installed.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; it must be at least 1")
    config = config or CleaningConfig()
    report = report if report is not None else CleaningReport()
    if config.masking:
        mask("", config.masking)  # says what is not installed before anything is read
    near = NearDuplicates(config.near_duplicates) if config.near_duplicates else None
    return _clean(documents, config, report, near, workers)


def _clean(documents, config, report, near, workers) -> Iterator[Document]:
    with _executor(workers) as executor:
        examined = _in_order(partial(_examine, config=config), documents, executor, workers)
        unseen = _unseen(examined, config, report)
        for document, prepared in _in_order(partial(_prepare, config=config), unseen, executor, workers):
            values, text, masked = prepared
            like = near.add(document.name, values) if near is not None and values is not None else None
            if like is not None:
                example = f"{document.name} ~ {like[0]} ({like[1]:.2f})"
                report.drop("near duplicate", example, _bytes(document.text))
                continue
            report.keep(_bytes(text), masked)
            yield document if text is document.text else replace(document, text=text)


def _unseen(examined: Iterable, config: CleaningConfig, report: CleaningReport) -> Iterator[Document]:
    """The documents that the filters keep and whose content is new."""
    seen: set[bytes] = set()
    for document, (reason, digest) in examined:
        if reason is None and config.exact_duplicates and digest in seen:
            reason = "exact duplicate"
        if reason is not None:
            report.drop(reason, document.name, _bytes(document.text))
            continue
        if config.exact_duplicates:
            seen.add(digest)
        yield document


def _examine(document: Document, config: CleaningConfig) -> tuple[str | None, bytes]:
    """(why the document itself is to be dropped, the digest of its content)."""
    unreadable = CleaningReport()
    if not is_readable(document.text, document.name, Problems(unreadable)):
        return next(iter(unreadable.dropped)), b""
    reason = config.licences and licence_reason_to_drop(document.text, document.licence, config.licences)
    if reason:
        return reason, b""
    digest = content_digest(document.text)
    return (reason_to_drop(document.text, digest, config.filters) if config.filters else None), digest


def _prepare(document: Document, config: CleaningConfig) -> tuple[np.ndarray | None, str, dict[str, int]]:
    """(signature, masked text, what was masked)."""
    values = signature(document.text, config.near_duplicates) if config.near_duplicates else None
    text, masked = mask(document.text, config.masking) if config.masking else (document.text, {})
    return values, text, masked


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _executor(workers: int):
    if workers == 1:
        return nullcontext()
    from multiprocessing import get_context

    # Forking a process in which a framework has threads can hang.
    return ProcessPoolExecutor(workers, get_context("spawn"))


def _in_order(
    function: Callable, items: Iterable, executor: Executor | None, workers: int
) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) in order, with a few pieces of work a process under way and no more."""
    if executor is None:
        for item in items:
            yield item, function(item)
        return
    items = iter(items)
    under_way: deque = deque()
    try:
        while True:
            while len(under_way) < 2 * workers and (piece := list(islice(items, DOCUMENTS_AT_A_TIME))):
                under_way.append((piece, executor.submit(_map, function, piece)))
            if not under_way:
                return
            piece, future = under_way.popleft()
            yield from zip(piece, future.result(), strict=True)
    finally:
        for _, future in under_way:
            future.cancel()


def _map(function: Callable, items: list) -> list:
    return [function(item) for item in items]
