"""Drive a sweep: share the images and the cluster among trials, let Ray Tune choose, and keep what came out."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
import yaml
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher
from ray.util.state import get_node
from ray.util.state.exception import RayStateApiException

from lodisc.config import EncoderConfig
from lodisc.encoder import require_known
from pipelines.data.run_images import RunImages, load_images, same_views, views_bytes, with_views
from pipelines.evaluation.scores import Score
from pipelines.run.checkpoint import last_checkpoint
from pipelines.run.config import ComputeConfig, PretrainConfig, TrackingConfig, config_from, load_recipe, to_dict
from pipelines.run.folder import FINISHED, RunFolder, claimed, named, open_run
from pipelines.run.nodes import training_nodes
from pipelines.tracking.model import keep_encoder
from pipelines.tracking.runs import RunHandle, create_run, finish_run, log_files, resume_run
from pipelines.tracking.store import store_warming
from tuning.callbacks import SweepWatcher, close_runs
from tuning.concurrency import driver, plan_trials
from tuning.config import SweepConfig
from tuning.report import BASE, SWEEP_TAG, SweepReport, publish, read_sweep
from tuning.trial import FAILED, read_outcome, run_trial, trial_name

TUNE = "tune"  # the folder of Ray Tune's own state
PLAN = "plan.json"
# Views of all epochs are kept where they take no more of the object store than this.
VIEWS_SHARE = 0.3
ENVIRONMENT = {
    # MLflow has the curves; Ray Tune would write them as TensorBoard, CSV and JSON files too.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # What a killed driver forgets of its trials, in seconds.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    # Paths in a config are relative to where the command was given, in a trial too.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # `SweepWatcher` says in a line why a trial failed.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The newer one prints a box that nothing turns off.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Frees the processes of a trial that was stopped, should they not end by themselves.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
}


def tune(config: SweepConfig) -> SweepReport:
    """Run a sweep to its end, print its report and keep it in MLflow and in the sweep's folder.

    Ray must be running. Interrupted or killed, the sweep continues with `resume`; trials that have ended stay as they
    are.

    Raises:
        ValueError: the name is in use, the images cannot be read or lack labels, the cluster is too small or has no
            dashboard, or no trial came to a score.
        KeyboardInterrupt: the user interrupted it; its state is kept.
    """
    require_dashboard()
    config = named(config, TUNE)
    with claimed(config):
        return _tune(config, open_run(config))


def _tune(config: SweepConfig, folder: RunFolder) -> SweepReport:
    objective, base = config.goal(), config.base()
    for encoder in searched_encoders(config):
        require_known(encoder)
    concurrent, compute = plan(config, base, folder)
    with store_warming(config.tracking, config.storage):
        images = load_images(base)
    require_labels(images, objective)
    sweep = open_sweep(config, base, folder, images)
    folder.write_json(PLAN, {"concurrent": concurrent})

    in_sweep = TrackingConfig(uri=sweep.uri, experiment=config.tracking.experiment)
    base = replace(base, storage=folder.path, tracking=in_sweep, compute=compute)
    threads = f"{concurrent} side by side" if concurrent > 1 else "one after another"
    status = "FAILED"
    try:
        images = share_views(images, base, config)
        print(f"{folder.name}: {config.trial_count()} trials, {threads}, tuned on {objective.name}", flush=True)
        unfinished = run_trials(config, base, objective, folder, sweep, images, concurrent)
        status = "KILLED" if unfinished else "FINISHED"
        if unfinished:
            raise KeyboardInterrupt
        return conclude(folder, sweep)
    except KeyboardInterrupt:
        status = "KILLED"
        print(f"interrupted; continue with the same command and --name {folder.name} --resume", flush=True)
        raise
    finally:
        finish_run(sweep, status)


def searched_encoders(config: SweepConfig) -> set[EncoderConfig]:
    """Return the encoders that trials may have."""
    domains = {name: domain for name, domain in config.domains().items() if name.startswith("encoder.")}
    changes = [{name: value} for name, domain in domains.items() for value in domain.values]
    return {load_recipe(config.recipe, config.shared_fields() | change).encoder for change in ({}, *changes)}


def require_dashboard() -> None:
    """Refuse a Ray without dashboard: there Ray Train never learns that a trial was stopped, and frees nothing it held.

    Raises:
        ValueError: there is none, or it does not answer.
    """
    context = ray.get_runtime_context()
    try:
        # Where there is none, that of another Ray on the same machine may answer, which does not know this node.
        known = get_node(context.get_node_id(), address=context.gcs_address)
    except RayStateApiException:
        known = None
    if known is None:
        raise ValueError(
            "address: a sweep needs a Ray whose dashboard answers; start it with ray start --head "
            "--include-dashboard=true, or with ray.init(include_dashboard=True)"
        )


def plan(config: SweepConfig, base: PretrainConfig, folder: RunFolder) -> tuple[int, ComputeConfig]:
    """Return how many trials run side by side, and what the workers of each take.

    Raises:
        ValueError: they do not fit on the cluster.
    """
    (nodes, _), trials = training_nodes(), config.trial_count()
    if not config.resume:
        return plan_trials(base.compute, nodes, trials, config.concurrent)
    # Ray Tune keeps with the trials of a sweep how many of them may run at a time.
    before: int = folder.read_json(PLAN)["concurrent"]
    try:
        return plan_trials(base.compute, nodes, trials, before)
    except ValueError as error:
        raise ValueError(
            f"resume: the sweep began with {before} trials side by side and needs a cluster as large as then: {error}"
        ) from error


def open_sweep(config: SweepConfig, base: PretrainConfig, folder: RunFolder, images: RunImages) -> RunHandle:
    """Create the sweep's MLflow run, or reopen the one that the folder names."""
    if config.resume:
        return resume_run(RunHandle(**folder.read_json("tracking.json")))
    tags = {**images.fingerprints, SWEEP_TAG: config.goal().name}
    handle = create_run(config.tracking, config.storage, folder.name, to_dict(config), tags)
    alone = replace(base, tracking=config.tracking, name=None)
    log_files(handle, {BASE: yaml.safe_dump(to_dict(alone), sort_keys=False).encode()})
    folder.write_json("tracking.json", asdict(handle))
    folder.write_config(config)
    return handle


def require_labels(images: RunImages, objective: Score) -> None:
    """Refuse an objective for which labels are missing.

    Raises:
        ValueError: naming the first image without the label that the objective needs.
    """
    if objective.needs is None:
        return
    column = "label" if objective.needs == "fine" else "coarse"
    # k-NN votes with the labels of the gallery, retrieval looks at the held-out images alone.
    for name in ("gallery", "held_out") if objective.name.startswith("knn") else ("held_out",):
        rows = images.decoded[name].select_columns([column, "path"]).take_all()
        for row in rows:
            if not isinstance(row[column], str):
                field = "data.images" if name == "gallery" else "data.eval_images"
                raise ValueError(
                    f"objective: {objective.name} needs a {objective.needs} label of every image, and {row['path']} of "
                    f"{field} has none; tune on rankme or align_uniform, which need no labels"
                )
        if objective.name.startswith("retrieval") and max(Counter(row[column] for row in rows).values()) < 2:
            raise ValueError(
                f"objective: no two images of data.eval_images share a {objective.needs} label, so {objective.name} "
                "cannot be measured on them"
            )


def share_views(images: RunImages, base: PretrainConfig, config: SweepConfig) -> RunImages:
    """Return the images with all views drawn, if there is room and the trials have the same ones."""
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    if config.trial_count() == 1 or views_bytes(images, base) > VIEWS_SHARE * store:
        return images
    tree = to_dict(base)
    searched = [(name, value) for name, domain in config.domains().items() for value in domain.values]
    same = all(same_views(base, config_from(tree, {name: value}, name)) for name, value in searched)
    return with_views(images, base) if same else images


def run_trials(
    config: SweepConfig,
    base: PretrainConfig,
    objective: Score,
    folder: RunFolder,
    sweep: RunHandle,
    images: RunImages,
    concurrent: int,
) -> int:
    """Let Ray Tune run the trials that have not ended yet, and return how many still have not."""
    os.environ |= ENVIRONMENT | os.environ
    trial = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, base=base, objective=objective, parent_run_id=sweep.run_id, images=images),
        driver(concurrent),
    )
    space = {name: domain.for_tune() for name, domain in config.domains().items()}
    state = f"{folder.path}/{TUNE}"
    if config.resume and ray.tune.Tuner.can_restore(state):
        # A trial that failed tells by its outcome whether to try again (`tuning/trial.py`).
        tuner = ray.tune.Tuner.restore(state, trial, resume_errored=True, param_space=space)
    else:
        tuner = ray.tune.Tuner(
            trial,
            param_space=space,
            tune_config=tune_config(config, objective, folder.name, base.optim.epochs, concurrent),
            run_config=ray.tune.RunConfig(
                name=TUNE,
                storage_path=folder.path,
                callbacks=[SweepWatcher(folder.path, objective, base.optim.epochs, list(space))],
                verbose=0,
            ),
        )
    try:
        results = tuner.fit()
    finally:
        close_runs(folder)  # those too that Ray Tune forgot when an earlier driver was killed
    return config.trial_count() - sum(has_ended(results[number], folder) for number in range(len(results)))


def has_ended(result: ray.tune.Result, folder: RunFolder) -> bool:
    """Say whether a trial will not go on. Ray Tune itself calls those terminated, too, that an interrupt cut off."""
    outcome = read_outcome(RunFolder(f"{folder.path}/{Path(result.path).name}"))
    return result.error is not None or (outcome is not None and outcome.final)


def tune_config(config: SweepConfig, objective: Score, name: str, epochs: int, concurrent: int) -> ray.tune.TuneConfig:
    """Return Ray Tune's own config of the sweep."""
    grid = config.sampler == "grid"

    def name_of(trial: Any) -> str:
        return trial_name(name, trial)

    return ray.tune.TuneConfig(
        metric="objective",
        mode=objective.mode,
        search_alg=sampler(config, objective, concurrent),
        scheduler=scheduler(config, epochs),
        num_samples=1 if grid else config.trial_count(),
        trial_name_creator=name_of,
        trial_dirname_creator=name_of,
    )


def sampler(config: SweepConfig, objective: Score, concurrent: int) -> Searcher | BasicVariantGenerator:
    """Return what chooses the trials' values, of at most `concurrent` trials at a time."""
    # Ray Tune's own option for this does not reach the one that draws at random.
    if config.sampler != "optuna":
        return BasicVariantGenerator(max_concurrent=concurrent, random_state=config.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # It warns of lists among the choices, which only a storage of its own could not keep.
    warnings.filterwarnings("ignore", message="Choices for a categorical distribution", category=UserWarning)
    # A third of the trials at random, and none where another one is just running.
    tpe = optuna.samplers.TPESampler(
        n_startup_trials=max(1, config.trial_count() // 3), constant_liar=True, seed=config.seed
    )
    searcher = OptunaSearch(metric="objective", mode=objective.mode, sampler=tpe)
    return ConcurrencyLimiter(searcher, max_concurrent=concurrent)


def scheduler(config: SweepConfig, epochs: int) -> TrialScheduler:
    """Return what stops trials early.

    Population based training is not offered: Ray Tune would copy checkpoints between trials, which Ray Train keeps for
    itself since its second version, so trials would go on as they were.
    """
    match config.scheduler:
        case "asha":
            return AsyncHyperBandScheduler(
                time_attr="epoch",
                grace_period=config.grace_epochs,
                reduction_factor=config.reduction_factor,
                max_t=epochs + 1,  # or it would stop every trial at its last epoch
            )
        case "median":
            # While there are too few others to compare with, a trial goes on: to pause it would end its processes.
            return MedianStoppingRule(
                time_attr="epoch",
                grace_period=config.grace_epochs,
                min_time_slice=math.inf,  # type: ignore[arg-type]  # it is compared with a time
            )
        case _:
            return FIFOScheduler()


def conclude(folder: RunFolder, sweep: RunHandle) -> SweepReport:
    """Report a sweep whose trials have all ended, and keep its best encoder as an MLflow model of its trial.

    Raises:
        ValueError: no trial came to a score.
    """
    report = read_sweep(sweep.uri, sweep.run_id)
    publish(report, sweep, folder)
    failed = [trial for trial in report.trials if trial.outcome == FAILED]
    if failed:
        print(
            f"trials that failed: {len(failed)}; the same command with --name {folder.name} --resume tries them again"
        )
    else:
        folder.write_json(FINISHED, {"best": report.best.name if report.best else None})
    if report.best is None:
        reasons = [trial.reason for trial in report.trials if trial.reason]
        raise ValueError(f"no trial of {folder.name} came to a score: {reasons[0] if reasons else 'none was run'}")
    trial = RunFolder(f"{folder.path}/{report.best.name}")
    if last_checkpoint(trial.path) is not None:
        keep_encoder(RunHandle(**trial.read_json("tracking.json")), trial.path)
    print(f"to pretrain with it: lodisc pretrain --config {folder.path}/best.yaml", flush=True)
    return report
