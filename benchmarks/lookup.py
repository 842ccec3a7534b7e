"""Find nearest neighbors among vectors with a flat and an inverted-file index: queries per second, and cost against their number.

    python -m benchmarks lookup [--vectors N ...] [--queries N] [--neighbors K] [--probes N ...] [--rounds N] [--plot FILE]

Vectors are random points around random centers, of unit length and 384 values, like those of a small sentence encoder. An index
of c clusters compares a query with c + probes * n / c vectors, which c = sqrt(n) minimizes for one probe. The table has the
queries per second of one call for all queries, and the share of the true neighbors that the index finds.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._interleave import machine
from duonlp.fewshot.lookup import NeighborIndex, search_cost
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json
from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

SIZE, CENTERS, SPREAD = 384, 1000, 0.7
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
PROBES = (1, 8)


def clustered_vectors(count: int, seed: int) -> np.ndarray:
    """Return unit vectors around CENTERS random ones, float32 [count, SIZE]; the centers are the same for every seed."""
    centers = np.random.default_rng(0).standard_normal((CENTERS, SIZE), np.float32)
    rng = np.random.default_rng(seed + 1)
    vectors = centers[rng.integers(0, CENTERS, count)] + SPREAD * rng.standard_normal((count, SIZE), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(count: int, queries: np.ndarray, k: int, probes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Return the figures of all indexes of `count` vectors, which take turns.

    Args:
        count: Number of vectors.
        queries: float32 [queries, SIZE].
        k: Number of neighbors.
        probes: Clusters to search; one index each, besides the flat one.
        rounds: Timed calls of each.
    """
    vectors, records, indexes = clustered_vectors(count, 1), [], []
    for index, probe in (("flat", 1), *(("ivf", n) for n in probes)):
        start = time.perf_counter()
        indexes.append(NeighborIndex(vectors, index, probes=probe))
        record = {"vectors": count, "index": index, "probes": probe, "clusters": indexes[-1].clusters}
        compared = count if index == "flat" else search_cost(count, indexes[-1].clusters, probe)
        records.append(record | {"built": time.perf_counter() - start, "compared": compared, "seconds": []})
    exact = indexes[0].search(queries, k)[0]
    for record, index in zip(records, indexes, strict=True):
        found = index.search(queries, k)[0]
        record["recall"] = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, exact, strict=True)]))
    for _ in range(rounds):
        for record, index in zip(records, indexes, strict=True):
            start = time.perf_counter()
            index.search(queries, k)
            record["seconds"].append(time.perf_counter() - start)
    for record in records:
        record["queries_per_second"] = len(queries) / statistics.median(record["seconds"])
    return records


def plot(records: list[dict[str, Any]], file: Path) -> None:
    """Plot the time of a query and the number of compared vectors against the number of vectors, on logarithmic axes."""
    names = list(dict.fromkeys((record["index"], record["probes"]) for record in records))
    with picture(file, 9, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for (index, probes), color in zip(names, COLOURS):
            points = [record for record in records if (record["index"], record["probes"]) == (index, probes)]
            label = "flat" if index == "flat" else f"IVF, sqrt(n) clusters, {probes} searched"
            counts = [record["vectors"] for record in points]
            left.plot(counts, [1e3 / record["queries_per_second"] for record in points], "o-", color=color, label=label)
            right.plot(counts, [record["compared"] for record in points], "o-", color=color, label=label)
        for axes, title in ((left, "time of a query (ms)"), (right, "vectors compared with a query")):
            axes.set(xscale="log", yscale="log", xlabel="vectors n", title=title)
            axes.grid(alpha=0.3)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.legend(fontsize=8)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lookup", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--vectors", type=int, nargs="+", default=SIZES, help="numbers of vectors (default %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=4096, help="queries per timed call (default %(default)s)")
    parser.add_argument("--neighbors", type=int, default=10, help="neighbors per query (default %(default)s)")
    parser.add_argument(
        "--probes", type=int, nargs="+", default=PROBES, help="clusters to search (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each index (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot cost against n (.png, .svg or .pdf)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    options = parser.parse_args(arguments)
    if options.plot:
        check_picture_file(options.plot)
        require_matplotlib("costs are plotted")
    queries, records = clustered_vectors(options.queries, 2), []
    print(
        "| vectors | index | searched | compared | built (s) | queries/s | recall |\n|---:|---|---:|---:|---:|---:|---:|"
    )
    for count in options.vectors:
        for r in measure(count, queries, options.neighbors, tuple(options.probes), options.rounds):
            records.append(r)
            searched = "all" if r["index"] == "flat" else f"{r['probes']} of {r['clusters']}"
            print(
                f"| {count:,} | {r['index']} | {searched} | {r['compared']:,.0f} | {r['built']:.2f} | "
                f"{r['queries_per_second']:,.0f} | {r['recall']:.3f} |",
                flush=True,
            )
    if options.plot:
        plot(records, options.plot)
    if options.json:
        report = {"machine": machine(), "neighbors": options.neighbors, "queries": options.queries, "records": records}
        write_text(options.json, to_json(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
