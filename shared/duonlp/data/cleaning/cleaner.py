"""Clean a corpus like CodeParrot's: check licenses, filter, remove exact and near duplicates, and mask secrets."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np

from duonlp.data.cleaning.duplicates import NearDuplicateConfig, NearDuplicates, content_digest, signature
from duonlp.data.cleaning.filters import FilterConfig, reason_to_drop
from duonlp.data.cleaning.licences import LicenceConfig, licence_reason_to_drop
from duonlp.data.cleaning.masking import MaskingConfig, mask
from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading.document_files import Problems, is_readable
from duonlp.data.reading.documents import Document
from duonlp.errors import InputError

CHUNK_DOCUMENTS = 64
"""Documents sent to a worker at a time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class CleaningConfig:
    """Steps of cleaning, in this order. None disables a step.

    Attributes:
        licences: Allowed licenses (default None: documents are kept whatever their license).
        filters: Limits on size, line lengths, alphanumeric fraction and other signs of data rather than code.
        exact_duplicates: Drop documents that equal an earlier one up to whitespace.
        near_duplicates: Drop documents that are near duplicates of one that was kept.
        masking: Mask e-mail addresses and secrets in the documents that are kept.

    Raises:
        InputError: If a step has the wrong type.
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
                raise InputError(f"{name} is {value!r}; give a {kind.__name__}, or None to disable it")


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
    """Yield the documents to keep, masked and in their original order, and update the report along the way.

    The first of several duplicates is kept. The result does not depend on the number of workers. Split
    the cleaned documents (`duonlp.data.write_split`) rather than the raw ones: then no held-out
    document is a near duplicate of a training document.

    Args:
        documents: Documents such as those of `read_documents`, consumed lazily.
        config: Steps to run (default: everything except the license check).
        report: Counts what was dropped and why. Pass the one given to `read_documents` to have
            everything in one report.
        workers: Number of processes that filter, hash and mask; 1 uses only the current process.
            Workers are spawned, so a script that uses several must guard its entry point with `if
            __name__ == "__main__":`.

    Raises:
        InputError: If `workers` is below 1.
        MissingExtraError: If a library that a step needs is not installed.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; it must be at least 1")
    config = config or CleaningConfig()
    report = report if report is not None else CleaningReport()
    if config.masking:
        mask("", config.masking)  # raises MissingExtraError before anything is read
    index = NearDuplicates(config.near_duplicates) if config.near_duplicates else None
    return _clean(documents, config, report, index, workers)


def _clean(
    documents: Iterable[Document],
    config: CleaningConfig,
    report: CleaningReport,
    index: NearDuplicates | None,
    workers: int,
) -> Iterator[Document]:
    with _make_executor(workers) as executor:
        checked = _map_in_order(partial(_check, config=config), documents, executor, workers)
        unique = _drop_rejected(checked, config, report)
        for document, prepared in _map_in_order(partial(_sign_and_mask, config=config), unique, executor, workers):
            values, text, masked = prepared
            similar = index.add(document.name, values) if index is not None and values is not None else None
            if similar is not None:
                name, similarity = similar
                report.drop(
                    "near duplicate", f"{document.name} ~ {name} ({similarity:.2f})", _byte_count(document.text)
                )
                continue
            report.keep(_byte_count(text), masked)
            yield document if text is document.text else replace(document, text=text)


def _drop_rejected(
    checked: Iterable[tuple[Document, tuple[str | None, bytes]]], config: CleaningConfig, report: CleaningReport
) -> Iterator[Document]:
    """Yield the documents that passed `_check` and are not exact duplicates; count the others."""
    seen: set[bytes] = set()
    for document, (reason, digest) in checked:
        if reason is None and config.exact_duplicates and digest in seen:
            reason = "exact duplicate"
        if reason is not None:
            report.drop(reason, document.name, _byte_count(document.text))
            continue
        if config.exact_duplicates:
            seen.add(digest)
        yield document


def _check(document: Document, config: CleaningConfig) -> tuple[str | None, bytes]:
    """Return (why the document is to be dropped or None, digest of its content)."""
    report = CleaningReport()
    if not is_readable(document.text, document.name, Problems(report)):
        return next(iter(report.dropped)), b""
    reason = config.licences and licence_reason_to_drop(document.text, document.licence, config.licences)
    if reason:
        return reason, b""
    digest = content_digest(document.text)
    return (reason_to_drop(document.text, digest, config.filters) if config.filters else None), digest


def _sign_and_mask(document: Document, config: CleaningConfig) -> tuple[np.ndarray | None, str, dict[str, int]]:
    """Return (MinHash signature or None, masked text, number of masks by kind)."""
    values = signature(document.text, config.near_duplicates) if config.near_duplicates else None
    text, masked = mask(document.text, config.masking) if config.masking else (document.text, {})
    return values, text, masked


def _byte_count(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _make_executor(workers: int) -> AbstractContextManager[Executor | None]:
    if workers == 1:
        return nullcontext()
    from multiprocessing import get_context

    # Forking a process in which a framework runs threads can hang.
    return ProcessPoolExecutor(workers, get_context("spawn"))


def _map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None, workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) in order, with at most two chunks per worker in flight."""
    if executor is None:
        for item in items:
            yield item, function(item)
        return
    items = iter(items)
    in_flight: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    try:
        while True:
            while len(in_flight) < 2 * workers and (chunk := list(islice(items, CHUNK_DOCUMENTS))):
                in_flight.append((chunk, executor.submit(_map_chunk, function, chunk)))
            if not in_flight:
                return
            chunk, future = in_flight.popleft()
            yield from zip(chunk, future.result(), strict=True)
    finally:
        for _, future in in_flight:
            future.cancel()


def _map_chunk(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]
