"""What several tests share: the real broker, a topic prefix of one's own, the real logs."""

from __future__ import annotations

import itertools
import os
import random
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from runtime.broker import EmbeddedBroker
from settings.java import JAVA_OPTIONS
from tests import broker_container
from tests.knobs import PROVE

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
_count = itertools.count()
pytest_plugins = ("tests.skips",)

# A test's JVM lives for seconds: the optimizing compiler costs it half of its processor time.
os.environ.setdefault(JAVA_OPTIONS, "-XX:TieredStopAtLevel=1")

# As the trainer does by default, and before torch is loaded: two threads of each of two workers on
# two busy cores wait for each other most of their time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline and no complaint of slowness: the machine is shared, and kernels compile at their
# first call. The examples are the same each time, so that a red run is about the change; `make
# prove` looks for new ones.
hypothesis.settings.register_profile(
    "headwater",
    deadline=None,
    print_blob=True,
    derandomize=not PROVE,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("headwater")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start many processes first: two workers then end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("flink")}
    long |= {item.path for item in items if item.get_closest_marker("kill")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Whatever ran before in this process, who has no seed of his own draws the same; new in `make
    prove`."""
    if PROVE:
        return
    random.seed(1)
    np.random.seed(1)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(1)


class _SteadyBroker(EmbeddedBroker):
    """It is never killed, so nobody waits for its session to end: a machine that stands still for
    some seconds does not cost it its partitions."""

    def _properties(self, controller_port: int) -> str:
        plain = super()._properties(controller_port).splitlines()
        kept = [line for line in plain if not line.startswith("broker.session.timeout.ms=")]
        return "\n".join([*kept, "broker.session.timeout.ms=60000", ""])


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real broker: $HEADWATER_TEST_BOOTSTRAP, else compose's own in a container
    where an engine has its image, else an embedded one."""
    given = os.environ.get("HEADWATER_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    if broker_container.is_there():
        with broker_container.container_broker() as at:
            yield at
        return
    with _SteadyBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker.bootstrap


@pytest.fixture
def prefix() -> str:
    """A topic prefix that no other test uses."""
    return f"t{next(_count)}-{uuid.uuid4().hex[:8]}"


def data_file(name: str) -> Path:
    """The real log `name`, or skip with the reason."""
    path = Path(os.environ.get("HEADWATER_TEST_DATA", DATA)) / name
    if not path.exists():
        pytest.skip(f"{name} is not in {path.parent}: the real logs are not part of the repository")
    return path
