"""k-NN and retrieval beside loops that take one query at a time, on the same features in one run.

    python -m benchmarks.evaluate --out benchmarks/results/evaluate.json

The loops take a sample of the queries, and their time is scaled to all of them. A last row is the memory that ours
takes beyond the features, in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import markdown_table, write_results
from benchmarks.timing import in_new_process, interleave, spread
from lodisc.probes.knn import knn_accuracy
from lodisc.probes.retrieval import retrieval_scores

DIM, CLASSES = 768, 100
K, TEMPERATURE = 20, 0.07
# Of one query: the similarities of all images to it.
Similarity = Callable[[int], np.ndarray]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--loop_queries", type=int, default=500)
    parser.add_argument("--memory_images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluate.json"))
    arguments = parser.parse_args()
    rows = measure(arguments.images, arguments.loop_queries, arguments.rounds)
    print(table(rows), flush=True)
    memory = in_new_process(measure_memory, arguments.memory_images)
    print("{images} images: {mib_over_features:.0f} MiB over the features, {seconds:.0f} s".format(**memory))
    write_results(arguments.out, [*rows, memory])


def measure(images: int, loop_queries: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each probe and way: {images, probe, contender, seconds, speedup, score}."""
    features, labels = made_features(images)
    queries = np.random.default_rng(0).choice(images, loop_queries, replace=False)
    ways = {"torch loop": torch_similarity(features), "numpy loop": numpy_similarity(features)}
    rows = []
    for probe, ours, loop in (("k-NN", our_knn, loop_knn), ("retrieval mAP", our_map, loop_map)):
        contenders: dict[str, Callable[[], float]] = {
            name: functools.partial(loop, way, labels.numpy(), queries) for name, way in ways.items()
        }
        contenders["LoDisc"] = functools.partial(ours, features, labels)
        scores = {name: contender() for name, contender in contenders.items()}
        times = interleave(contenders, rounds)
        scaled = {
            name: spread([t * (1 if name == "LoDisc" else images / loop_queries) for t in values])
            for name, values in times.items()
        }
        rows += [
            {
                "images": images,
                "probe": probe,
                "contender": name,
                "seconds": seconds,
                "speedup": seconds["median"] / scaled["LoDisc"]["median"],
                "score": scores[name],
            }
            for name, seconds in scaled.items()
        ]
    return rows


def made_features(images: int) -> tuple[Tensor, Tensor]:
    """Return features (images, 768) float32 of 100 overlapping classes, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    centres = torch.randn(CLASSES, DIM, generator=generator)
    features = torch.randn(images, DIM, generator=generator).mul_(4)
    for rows in torch.arange(images).split(1000):
        features[rows] += centres[labels[rows]]
    return features, labels


def our_knn(features: Tensor, labels: Tensor) -> float:
    return knn_accuracy(features, labels, features, labels, K, TEMPERATURE)


def our_map(features: Tensor, labels: Tensor) -> float:
    return retrieval_scores(features, labels)["map"]


def torch_similarity(features: Tensor) -> Similarity:
    """Return the similarity as it is written at first."""
    return lambda query: F.cosine_similarity(features[query : query + 1], features).numpy()


def numpy_similarity(features: Tensor) -> Similarity:
    """Return the similarity with all norms divided out beforehand."""
    unit = F.normalize(features, dim=1).numpy()
    return lambda query: unit @ unit[query]


def loop_knn(similarity: Similarity, labels: np.ndarray, queries: np.ndarray) -> float:
    """Vote for one query after another; return the share in percent that is right."""
    right = 0
    for query in queries:
        row = similarity(query)
        nearest = np.argsort(-row, kind="stable")[:K]
        votes = np.zeros(CLASSES)
        for place in nearest:
            votes[labels[place]] += np.exp(row[place] / TEMPERATURE)
        right += int(votes.argmax() == labels[query])
    return 100 * right / len(queries)


def loop_map(similarity: Similarity, labels: np.ndarray, queries: np.ndarray) -> float:
    """Rank all other images for one query after another; return mean average precision in percent."""
    return 100 * float(np.mean(list(precisions(similarity, labels, queries))))


def precisions(similarity: Similarity, labels: np.ndarray, queries: np.ndarray) -> Iterator[float]:
    for query in queries:
        order = np.argsort(-similarity(query), kind="stable")
        found = labels[order[order != query]] == labels[query]
        places = np.flatnonzero(found) + 1
        if len(places) > 0:
            yield float(np.mean([number / place for number, place in enumerate(places, start=1)]))


def measure_memory(images: int) -> dict[str, Any]:
    """Return what both probes take beyond the features that they are given."""
    features, labels = made_features(images)
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    our_knn(features, labels)
    our_map(features, labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "images": images,
        "contender": "LoDisc",
        "probe": "k-NN and retrieval",
        "mib_over_features": (peak - before) / 2**20,
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    header = ("images", "probe", "way", "s (min-max)", "it / LoDisc")
    return markdown_table(
        header,
        [
            (
                row["images"],
                row["probe"],
                row["contender"],
                "{median:.1f} ({min:.1f}-{max:.1f})".format(**row["seconds"]),
                f"{row['speedup']:.1f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
