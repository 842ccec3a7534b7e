"""Clean the standard library and the installed packages: documents dropped, by reason, and speed.

    python -m benchmarks clean [--workers N]

With one worker, time is this process' CPU time, which other load on the machine does not affect. With several workers, whose
CPU time this process does not see, it is wall-clock time.
"""

import argparse
import sysconfig
import time

from rich.console import Console

from duonlp.data import CleaningReport, clean, read_documents


def main(arguments: list[str] | None = None) -> None:
    """Read and clean every installed Python file, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks clean", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="number of cleaning processes (default %(default)s)")
    workers = parser.parse_args(arguments).workers
    clock = time.process_time if workers == 1 else time.perf_counter
    report = CleaningReport()
    paths = sysconfig.get_paths()
    start = clock()
    library = read_documents(paths["stdlib"], kind="tree", skip=frozenset({"site-packages"}), report=report)
    packages = read_documents(paths["purelib"], kind="tree", report=report)
    documents = (document for source in (library, packages) for document in source)
    for _ in clean(documents, report=report, workers=workers):
        pass
    seconds = clock() - start
    Console().print(report.table())
    print(
        f"{report.documents} files, {report.bytes / 1e6:.1f} MB, in {seconds:.1f} s: "
        f"{report.documents / seconds:.0f} files/s, {report.bytes / 1e6 / seconds:.1f} MB/s"
    )


if __name__ == "__main__":
    main()
