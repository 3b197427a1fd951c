"""What LoDisc buys: the contenders of each set, three seeds, on photographs of groceries and on made birds.

    python -m benchmarks.results.costs
    python -m benchmarks.results --data GROCERY --storage runs
    python -m benchmarks.results.page

GROCERY is the folder of the Grocery Store Dataset (train.txt, val.txt, test.txt). Runs that `storage` holds already are
not run again, and what was cut off goes on. benchmarks/results/SET.json is written after each run. The last command
makes the tables and curves of docs/results.md and README.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.report import cpu_name
from benchmarks.results.contenders import MAIN, SEEDS, SETS, Contender, DataSet, data_set, groups, make_demo_images
from benchmarks.results.rows import UNTRAINED, WATCHED, Row, keep, path_of
from cluster.connect import connect
from lodisc.encoder import Encoder
from lodisc.precision import resolve_precision
from pipelines.data.run_images import images_for, load_images, with_views
from pipelines.evaluation.evaluators import Seen, score
from pipelines.evaluation.features import embed_decoded
from pipelines.run.checkpoint import load_encoder
from pipelines.run.config import PretrainConfig, to_dict
from pipelines.run.folder import FINISHED
from pipelines.tracking.record import read_record
from pipelines.training.pretrain import pretrain

ALL = 10**9  # images: more than any set has
CPU = torch.device("cpu")
DECISIVE = ("data", "encoder", "model", "views", "optim", "seed")


def main() -> None:
    """Run what is missing, and write the rows after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    arguments = parser.parse_args()
    if "demo" in arguments.sets:
        make_demo_images(arguments.storage)
    with connect():
        for name in arguments.sets:
            measure(data_set(name, arguments.data, arguments.storage), str(arguments.storage), path_of(name))


def measure(data: DataSet, storage: str, out: Path) -> None:
    """Run and score all contenders on a data set, seed by seed, so that what is there at any time can be compared."""
    judge = Judge(data, storage)
    for contenders in groups(data):
        for seed in SEEDS:
            judge.prepare(contenders, seed)
            for contender in contenders:
                keep(out, judge.row(contender, seed))
    for seed in SEEDS:
        keep(out, judge.untrained(seed))


class Judge:
    """Trains contenders on a data set and scores them on its test images, which are decoded once."""

    def __init__(self, data: DataSet, storage: str) -> None:
        self.data, self.storage = data, storage
        config = data.config(MAIN[0], SEEDS[0], storage)
        whole = replace(config.evaluation, max_images=ALL)
        on_test = replace(config, data=replace(config.data, eval_images=data.test), evaluation=whole)
        self.images = load_images(config)
        self.decoded = load_images(on_test).decoded

    def prepare(self, contenders: tuple[Contender, ...], seed: int) -> None:
        """Draw the views that a group's runs share and decode what they are watched by, where a run is to come."""
        config = self.data.config(contenders[0], seed, self.storage)
        if not all(self._finished(self.data.config(contender, seed, self.storage)) for contender in contenders):
            self.images = with_views(images_for(self.images, config), config)

    def _finished(self, config: PretrainConfig) -> bool:
        return (Path(config.storage) / str(config.name) / FINISHED).exists()

    def row(self, contender: Contender, seed: int) -> Row:
        """Return what one run gives, running it where it has not been.

        Raises:
            ValueError: there is a run of that name with another config.
        """
        config = self.data.config(contender, seed, self.storage)
        folder = Path(self.storage) / str(config.name)
        if not self._finished(config):
            pretrain(replace(config, resume=(folder / "config.yaml").exists()), images=self.images)
        encoder, about = load_encoder(str(folder))
        wanted = to_dict(config)
        if differing := [name for name in DECISIVE if about["config"][name] != wanted[name]]:
            raise ValueError(f"{folder}: a run with another config ({', '.join(differing)}); remove it or its storage")
        curves = read_record(about["tracking_uri"], about["run_id"]).curves
        return self._row(contender.name, seed, encoder) | {
            "epochs": config.optim.epochs,
            "steps": about["step"],
            "curves": {name: vars(curves[name]) for name in WATCHED},
        }

    def untrained(self, seed: int) -> Row:
        """Return what the encoder gives that the runs of a seed start from."""
        config = self.data.config(MAIN[0], seed, self.storage)
        encoder, _ = load_encoder(str(Path(self.storage) / str(config.name)), untrained=True)
        return self._row(UNTRAINED, seed, encoder) | {"epochs": 0, "steps": 0, "curves": {}}

    def _row(self, contender: str, seed: int, encoder: Encoder) -> Row:
        dtype = resolve_precision("auto", CPU)
        features = {
            name: embed_decoded(encoder, images.iter_batches(batch_size=128), "image", CPU, dtype)
            for name, images in self.decoded.items()
        }
        scores = score(Seen(features["held_out"], features["gallery"]))
        run = {"set": self.data.name, "contender": contender, "seed": seed}
        return {**run, "cpu": cpu_name(), "scores": scores}


if __name__ == "__main__":
    main()
