"""Joining Ray: what is refused, and what a worker is given."""

from __future__ import annotations

import logging
import os

import pytest
import ray

from cluster.connect import ENVIRONMENT, connect, knock
from cluster.worker import LOG_LEVELS, interface_of


@pytest.mark.parametrize("address", ["somewhere", "ray://somewhere", "somewhere:port", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        knock(address)


def test_an_address_where_nobody_answers_is_refused_at_once() -> None:
    with pytest.raises(ConnectionRefusedError):
        knock("127.0.0.1:1")


def test_workers_find_each_other_by_the_interface_of_their_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


@pytest.mark.slow
def test_a_worker_is_prepared_like_the_driver(ray_session: None) -> None:
    @ray.remote
    def look() -> tuple[dict[str, str], dict[str, int]]:
        return dict(os.environ), {name: logging.getLogger(name).level for name in LOG_LEVELS}

    environment, levels = ray.get(look.remote())
    assert {name: environment[name] for name in ENVIRONMENT} == {name: os.environ[name] for name in ENVIRONMENT}
    assert levels == LOG_LEVELS
    assert environment["GLOO_SOCKET_IFNAME"] == interface_of(ray.util.get_node_ip_address())
    assert environment["RAY_ADDRESS"] == os.environ["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address


@pytest.mark.slow
def test_a_running_ray_is_used_and_left_running(ray_session: None) -> None:
    with connect("127.0.0.1:1"):
        assert ray.is_initialized()
    assert ray.is_initialized()
