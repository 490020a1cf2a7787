"""The embedded broker: real, ours, and the same one after a crash."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from runtime.broker import BrokerError, EmbeddedBroker, ForeignBroker, cluster_id_at

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_a_killed_broker_returns_as_the_same_cluster_with_its_topics(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        bootstrap = broker.bootstrap
        admin = AdminClient({"bootstrap.servers": bootstrap})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(60)
        broker.kill()
        assert broker.pid is None
        broker.start()
        assert broker.bootstrap == bootstrap
        assert cluster_id_at(bootstrap, timeout_s=60) == broker.cluster_id
        assert "kept" in admin.list_topics(timeout=60).topics


def test_a_broker_that_was_not_formatted_here_is_refused_before_any_write(
    tmp_path: Path, kafka: str
) -> None:
    theirs = cluster_id_at(kafka, timeout_s=60)
    broker = EmbeddedBroker(tmp_path / "broker")
    broker.prepare()
    state = tmp_path / "broker" / "broker.json"
    known = json.loads(state.read_text())
    state.write_text(json.dumps({**known, "port": int(kafka.rpartition(":")[2])}))
    with pytest.raises(ForeignBroker, match=f"{theirs}.*formatted as .*{known['cluster_id']}"):
        EmbeddedBroker(tmp_path / "broker").start()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is in use"):
            EmbeddedBroker(tmp_path / "broker", port).start()


def test_nothing_answers_where_nothing_listens() -> None:
    assert cluster_id_at("127.0.0.1:1") is None
