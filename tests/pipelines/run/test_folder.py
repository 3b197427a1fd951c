"""Who may write to a run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.run.config import ComputeConfig, DataConfig, OptimConfig, PretrainConfig
from pipelines.run.folder import FINISHED, claimed, named, open_run


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(data=DataConfig(images="photos"), name="first", storage=str(tmp_path))


def test_a_new_name_is_free(config: PretrainConfig) -> None:
    folder = open_run(config)
    assert (folder.name, folder.storage, folder.finished_steps()) == ("first", config.storage, 0)


def test_a_name_in_use_needs_resume(config: PretrainConfig) -> None:
    open_run(config).write_config(config)
    with pytest.raises(ValueError, match=r"name: a run 'first' exists .* --resume"):
        open_run(config)
    assert open_run(replace(config, resume=True)).name == "first"


def test_a_name_that_a_process_works_on_is_refused_until_it_ends(config: PretrainConfig) -> None:
    with claimed(config):
        with pytest.raises(ValueError, match=r"name: another process works on 'first'"), claimed(config):
            pass
        with claimed(replace(config, name="second")):
            pass
    with claimed(config):
        assert not Path(config.storage, "first").exists()


def test_nothing_to_resume_is_refused(config: PretrainConfig) -> None:
    with pytest.raises(ValueError, match="resume: there is no run 'first'"):
        open_run(replace(config, resume=True))


def test_a_finished_run_is_never_continued(config: PretrainConfig) -> None:
    folder = open_run(config)
    folder.write_config(config)
    folder.write_json(FINISHED, {})
    with pytest.raises(ValueError, match="finished"):
        open_run(replace(config, resume=True))


def test_resume_refuses_another_objective_but_not_other_machines(config: PretrainConfig) -> None:
    open_run(config).write_config(config)
    moved = replace(config, resume=True, compute=ComputeConfig(workers=2))
    assert open_run(moved).name == "first"
    changed = replace(config, resume=True, optim=OptimConfig(epochs=50), seed=1)
    with pytest.raises(ValueError, match=r"optim.epochs was 100, is 50; seed was 0, is 1"):
        open_run(changed)


def test_a_run_without_a_name_gets_one_and_storage_is_absolute() -> None:
    config = named(PretrainConfig(data=DataConfig(images="photos")))
    assert config.name and config.name.startswith("pretrain-")
    assert Path(config.storage).is_absolute()
