"""A cluster that begins with a head alone: a run asks for nodes, which Ray's autoscaler adds as made-up machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import SECONDS, Lab, ended
from tests.cluster.nodes import Nodes, may_make_namespaces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.privileged,
    pytest.mark.skipif(not may_make_namespaces(), reason="the made-up machines take addresses of their own"),
]
HEAD_ID = "f" * 51 + "00000"
ENVIRONMENT: dict[str, Any] = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}
COMMANDS = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")


def config(folder: Path) -> Path:
    """Write the config of two nodes that may train and one that draws views, none of them there at the beginning."""
    nodes: dict[str, Any] = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0}
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "train": {**nodes, "max_workers": 2},
        "ingest": {**nodes, "max_workers": 1, "labels": {"ingest": "true"}},
    }
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
    }
    tree = {
        "cluster_name": "made-up",
        "max_workers": 3,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {"ssh_user": "nobody"},
        "rsync_exclude": [],
        "rsync_filter": [],
        "cluster_synced_files": [],
        **{name: {} for name in ("file_mounts", "docker", "head_node", "worker_nodes")},
        **{f"{name}_commands": [] for name in COMMANDS},
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(tree))
    return file


def test_a_run_brings_the_nodes_that_it_needs(tmp_path: Path, image_folder: Any) -> None:
    """It takes some 40 s: a cluster of its own starts, and a node after the other joins it."""
    with Nodes(tmp_path) as cluster:
        cluster.start("head", cpus=0, autoscaling=config(tmp_path), **ENVIRONMENT)
        lab = Lab(cluster, image_folder(classes=2, per_class=13))
        refused = cluster.run("pretrain", *lab.recipe("unsized", epochs=2), "--address", cluster.address)
        assert "set compute.gpus and compute.cpus_per_worker" in refused.communicate(timeout=SECONDS)[0]
        recipe = lab.recipe("sized", epochs=2, gpus=False, cpus_per_worker=1)
        printed = ended(cluster.run("pretrain", *recipe, "--address", cluster.address))
        assert "Adding 1 node(s) of type train" in printed and "Adding 1 node(s) of type ingest" in printed
        assert lab.steps("sized") == 6
