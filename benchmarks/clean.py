"""Cleaning of the standard library and of the installed packages: what is dropped and why, and how fast.

    python -m benchmarks clean [--workers N]

The speed is in seconds of this process' own processor time, so that what else runs on the machine does not count; with
workers, whose time that is not, on the clock.
"""

import argparse
import sysconfig
import time

from rich.console import Console

from duonlp.data import CleaningReport, clean, read_documents


def main(options: list[str] | None = None) -> None:
    """Reads and cleans every Python file there is, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    workers = parser.parse_args(options).workers
    clock = time.process_time if workers == 1 else time.perf_counter
    report = CleaningReport()
    paths = sysconfig.get_paths()
    begin = clock()
    library = read_documents(paths["stdlib"], kind="tree", skip=frozenset({"site-packages"}), report=report)
    packages = read_documents(paths["purelib"], kind="tree", report=report)
    documents = (document for source in (library, packages) for document in source)
    for _ in clean(documents, report=report, workers=workers):
        pass
    seconds = clock() - begin
    Console().print(report.table())
    print(
        f"{report.documents} files, {report.bytes / 1e6:.1f} MB, in {seconds:.1f} s: "
        f"{report.documents / seconds:.0f} files/s, {report.bytes / 1e6 / seconds:.1f} MB/s"
    )


if __name__ == "__main__":
    main()
