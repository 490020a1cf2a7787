"""Plan the join in PyFlink, submit it, and follow it to its end. The only module with PyFlink.

PyFlink runs the whole job in a JVM that this process starts and that dies with it, so killing this
process at any moment is a crash of the join: the next start restores the newest checkpoint.
"""

from __future__ import annotations

import os
import re
import shlex
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from settings.config import Config
from settings.errors import ConfigError
from settings.java import java_options
from stream.errors import JoinFailed, JoinPlanUnknown, JoinStateLost
from stream.flink_rest import FlinkRest
from stream.kept_plans import Plan, plan_for
from stream.plan import JAR_CONTRACT, flink_settings, job_name
from stream.remote import Cluster, RemoteJob, submission_settings
from stream.restore import (
    SavedState,
    check_mode,
    check_parallelism,
    check_shape,
    forget_finished,
    home_of,
    read_shape,
    require_newest,
    saved_states,
    shape_of,
    write_shape,
)
from stream.savepoint import RunningAt, write_running
from stream.stuck import StuckWatch, known_or_none
from stream.tether import lock_state_dir, tether
from stream.topology import build
from topics.scan import Partition

JAR_NAMES = (
    "headwater-join.jar",
    "flink-sql-connector-kafka-5.0.0-2.2.jar",
    "zstd-jni-1.5.6-10.jar",
)
# Most pairs open and close within a second of a backlog: they should die young. Of history all is
# backlog, and nobody else wants the memory for long.
_HEAP = ("-Xms1g", "-Xmx2g", "-Xmn768m", "-XX:+UseParallelGC")
_BOUNDED_HEAP = ("-Xms1800m", "-Xmx2g", "-Xmn1200m", "-XX:+UseParallelGC")
_LOG4J = """status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:log.file}
appender.file.filePattern = ${sys:log.file}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %-5p %c{1} - %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
# Two lines per checkpoint each, about nothing: the sink registers a metric twice.
logger.metrics.name = org.apache.flink.metrics.MetricGroup
logger.metrics.level = error
logger.kafka.name = org.apache.flink.kafka.shaded
logger.kafka.level = warn
"""
_CONTRACT = "dev/headwater/join/contract"
_CAUSE = re.compile(r"^\s*Caused by: (.+)$", re.MULTILINE)
# What Flink says once a task is already down; the reason is another exception.
_NOISE = re.compile(
    r"TaskNotRunningException|OperatorEvent from an OperatorCoordinator|Recovery is suppressed"
    r"|Job execution failed|CancelTaskException"
)
_PY4J = "An error occurred while calling"
_LOG_TAIL_CHARS = 500_000
_HINTS = (
    ("transaction timeout", "lower join.transaction_timeout, or raise transaction.max.timeout.ms"),
    ("AuthorizationException", "`headwater acls` prints the rights that the join needs"),
    ("AuthenticationException", "the broker did not let it in: check kafka.extra (sasl.*, ssl.*)"),
    ("Connection refused", "the join's JVM died; see its log and stderr.log"),
    ("Could not find any factory", "build the jars: make jars"),
    (
        "Heartbeat of TaskManager",
        "the machine slept or stood still; the join goes on when restarted",
    ),
    ("TimeoutException", "is the broker at kafka.bootstrap up and reachable?"),
    ("UnknownTopicOrPartition", "a topic was deleted while the join ran"),
    ("RecordTooLarge", "raise the topic's max.message.bytes, or lower events.bytes_max"),
    ("Could not start rest endpoint", "another process has that port; choose another --rest-port"),
    ("OutOfMemoryError", 'set JVM_ARGS="-Xmx4g", or join.state_backend = "rocksdb"'),
    ("No space left", "make room on the disk that holds --state-dir, then start the join again"),
)
_log = structlog.get_logger()


def jar_paths() -> list[Path]:
    """The jars that the job needs. Raises JoinFailed naming those not built."""
    home = os.environ.get("HEADWATER_JARS")
    root = Path(home) if home else Path(__file__).resolve().parent.parent / "build" / "jars"
    jars = [root / "flink" / name for name in JAR_NAMES]
    missing = [str(jar) for jar in jars if not jar.is_file()]
    if missing:
        raise JoinFailed(f"jars not found: {', '.join(missing)}", hint="build them: make jars")
    _require_contract(jars[0])
    return jars


def _require_contract(jar: Path) -> None:
    """Raise JoinFailed where the operator's jar was built from other sources than this release's:
    it would misread what it is told, somewhere inside Flink."""
    try:
        with zipfile.ZipFile(jar) as packed:
            found = packed.read(_CONTRACT).decode("ascii").strip()
    except (KeyError, zipfile.BadZipFile):
        found = "none"
    if found != str(JAR_CONTRACT):
        raise JoinFailed(
            f"{jar} is of another release: expected contract {JAR_CONTRACT}, got {found}",
            hint="build it anew: make jars",
        )


class JoinJob:
    """One submitted run of the join. Create, then `wait`; `cancel` may come from a signal handler's
    flag via `wait(stopping=...)`."""

    def __init__(
        self,
        config: Config,
        bootstrap: str,
        state_dir: Path,
        *,
        bounded: bool,
        rest_port: int,
        has_run: Callable[[], bool],
        cluster: Cluster | None = None,
        restore: Path | None = None,
        position: Callable[[], Mapping[Partition, int]] = dict,
    ) -> None:
        """Plan and submit. `has_run` says whether the join's group has committed offsets;
        `cluster` = run there instead of in a JVM of our own; `restore` = the state to start from,
        which must be the newest, where it is not to be found by itself. `position` gives the
        group's committed offsets: a run that restarts without moving them is ended.

        Raises JoinFailed with the last cause; JoinStateLost if the join has run before but no
        state of it is here: starting afresh would write every sample a second time; JoinPlanUnknown
        and JoinConfigChanged if its state does not fit this release or config; SavepointOld.
        """
        self._log_dir = (state_dir / "logs").resolve()
        self._log_dir.mkdir(parents=True, exist_ok=True)
        jars = jar_paths()
        self._lock = lock_state_dir(state_dir)
        check_mode(state_dir, bounded=bounded)
        forget_finished(state_dir)
        asked = None if restore is None else require_newest(state_dir, restore.resolve())
        # Refuses what does not fit before a JVM is started.
        self._plan = _choose_plan(config, state_dir, asked)
        configured = self._start_jvm(_BOUNDED_HEAP if bounded else _HEAP)
        saved = asked or _newest_readable(state_dir)
        self.restored_from = None if saved is None else saved.path
        if saved is None and has_run():
            raise JoinStateLost(state_dir)
        write_shape(state_dir, shape_of(config, self._plan.name))
        settings = flink_settings(
            config,
            state_dir=state_dir,
            jars=jars,
            rest_port=rest_port,
            bounded=bounded,
            restore_from=None if self.restored_from is None else self.restored_from.as_uri(),
        )
        if saved is not None and saved.is_savepoint:  # ours to keep, not Flink's to delete
            settings["execution.state-recovery.claim-mode"] = "NO_CLAIM"
        if cluster is not None:
            settings = submission_settings(settings, cluster)
        try:
            configuration = configured(self.settings(settings))
            self._client = self.submit(configuration, config, bootstrap, bounded=bounded)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  py4j maps any Java exception to bare ones
            raise self._failure(error) from None
        self.job_id = str(self._client.get_job_id())
        rest = f"http://127.0.0.1:{rest_port}" if cluster is None else cluster.url
        write_running(state_dir, RunningAt(rest=rest, job_id=self.job_id, pid=os.getpid()))
        self._remote = None if cluster is None else RemoteJob(FlinkRest(rest), self.job_id)
        self._stuck = _watch(rest, self.job_id, state_dir, position, cluster)
        self.net_runtime_ms: int | None = None
        """Of a bounded run that has ended: from Flink's start of the job to its end, without the
        start of the JVM and the planning."""

    def settings(self, settings: dict[str, str]) -> dict[str, str]:
        """Flink's settings as they are used; a benchmark adds its own."""
        return settings

    def submit(self, configuration: Any, config: Config, bootstrap: str, *, bounded: bool) -> Any:
        """Plan and start the job; returns PyFlink's JobClient. A benchmark's peer has its own."""
        from pyflink.datastream import StreamExecutionEnvironment
        from pyflink.java_gateway import get_gateway

        # By its constructor: what Flink's factory gives outside of `flink run` is always local.
        make = get_gateway().jvm.org.apache.flink.streaming.api.environment
        own = make.StreamExecutionEnvironment(configuration._j_configuration)
        environment = StreamExecutionEnvironment(own)
        build(environment, config, bootstrap, bounded=bounded)
        return environment.execute_async(job_name(config))

    def wait(self, stopping: Callable[[], bool]) -> bool:
        """Block until the bounded input is joined (True) or `stopping()` is true (False).

        Raises JoinFailed with the last cause when the job failed, or gets nowhere.
        """
        if self._remote is not None:
            return self._remote.wait(stopping)
        try:
            ended = self._client.get_job_execution_result()
            while not ended.done():
                if stopping():
                    return False
                self._refuse_if_stuck()
                time.sleep(0.1)
            self.net_runtime_ms = int(ended.result().get_net_runtime())
        except JoinFailed:
            raise
        except Exception as error:  # noqa: BLE001  py4j maps any Java exception to bare ones
            if stopping():  # a signal to the whole group takes the JVM down first
                return False
            raise self._failure(error) from None
        return True

    def _refuse_if_stuck(self) -> None:
        reason = self._stuck.reason()
        if reason is not None:
            self.cancel()
            raise JoinFailed(reason, hint=_hint(reason), log=self._log_dir)

    def cancel(self, timeout_seconds: float = 5.0) -> None:
        """Stop the job and keep its newest checkpoint; gives up quietly, a crash is as good."""
        if self._remote is not None:
            self._remote.cancel()
            return
        deadline = time.monotonic() + timeout_seconds
        try:
            cancelled = self._client.cancel()
            while not cancelled.done() and time.monotonic() < deadline:
                time.sleep(0.05)
        except Exception as error:  # noqa: BLE001  the JVM is gone already
            _log.info("join_gone", error=str(error).split("\n")[0])

    def _start_jvm(self, heap: Sequence[str]) -> Callable[[dict[str, str]], Any]:
        """Start PyFlink's JVM with this heap and our log directory; returns what makes its settings
        of ours."""
        os.environ.setdefault("JVM_ARGS", shlex.join(java_options(*heap)))
        os.environ["FLINK_LOG_DIR"] = str(self._log_dir)
        # Else PyFlink serves Beam's worker pool beside every environment: gRPC that needs Beam,
        # listens on all interfaces and starts Python for whoever asks. No function here is Python.
        os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112  its name
        _write_log_settings(self._log_dir)
        try:
            from pyflink import pyflink_gateway_server
            from pyflink.common import Configuration
            from pyflink.java_gateway import get_gateway
            from pyflink.util.java_utils import add_jars_to_context_class_loader
        except ImportError as error:
            raise JoinFailed(f"PyFlink is not installed: {error}", hint="make setup") from None
        tether(pyflink_gateway_server, self._lock, self._log_dir / "stderr.log")
        get_gateway()

        def make(settings: dict[str, str]) -> Any:
            configuration = Configuration()
            for name, value in settings.items():
                configuration.set_string(name, value)
            add_jars_to_context_class_loader(settings["pipeline.jars"].split(";"))
            return configuration

        return make

    def _logged_causes(self) -> list[str]:
        """Causes in the JVM's log, for failures that reach us only as their consequence."""
        causes: list[str] = []
        for log in self._log_dir.glob("*.log"):
            text = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARS:]
            causes += [cause for cause in _CAUSE.findall(text) if not _NOISE.search(cause)]
        return causes

    def _failure(self, error: Exception) -> JoinFailed | JoinPlanUnknown:
        text = str(error)
        causes = _CAUSE.findall(text)
        lines = [line.removeprefix(": ") for line in text.strip().splitlines() if line]
        told = [line for line in lines if not line.startswith(_PY4J)][:1]
        own = [cause for cause in causes if not _NOISE.search(cause)]
        if causes and not own:
            own = self._logged_causes()
        reason = (own or causes or told or [repr(error)])[-1]
        if "Cannot map checkpoint/savepoint state" in text:
            return JoinPlanUnknown(self._plan.name, "its operators are not in this job")
        return JoinFailed(reason, hint=_hint(text), log=self._log_dir)


def _hint(text: str) -> str | None:
    return next((hint for sign, hint in _HINTS if sign in text), None)


def _choose_plan(config: Config, state_dir: Path, asked: SavedState | None) -> Plan:
    """The plan that the state to start from belongs to, if this config can go on with it."""
    home = state_dir if asked is None else home_of(asked.path)
    newest = asked or next(saved_states(home), None)
    before = None if newest is None else read_shape(home)
    plan = plan_for(None if before is None else before.plan)
    if newest is not None and before is not None:
        now = shape_of(config, plan.name)
        check_shape(before, now)
        check_parallelism(before, now, newest)
    return plan


def _write_log_settings(log_dir: Path) -> None:
    """A configuration directory like PyFlink's own, but with logs that cannot fill the disk."""
    import pyflink

    shipped = Path(pyflink.__file__).parent / "conf" / "config.yaml"
    folder = log_dir / "conf"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_bytes(shipped.read_bytes())
    (folder / "log4j-cli.properties").write_text(_LOG4J, encoding="utf-8")
    os.environ["FLINK_CONF_DIR"] = str(folder)


def _newest_readable(state_dir: Path) -> SavedState | None:
    """The newest checkpoint or savepoint whose metadata Flink can read to its end."""
    from pyflink.java_gateway import get_gateway

    jvm = get_gateway().jvm
    checkpoints = jvm.org.apache.flink.runtime.checkpoint.Checkpoints
    loader = jvm.Thread.currentThread().getContextClassLoader()
    for saved in saved_states(state_dir):
        path = saved.path.resolve()
        metadata = path / "_metadata"
        stream = jvm.java.io.DataInputStream(jvm.java.io.FileInputStream(str(metadata)))
        try:
            checkpoints.loadCheckpointMetadata(stream, loader, str(path))
        except Exception as error:  # noqa: BLE001  py4j's class; anything unreadable is skipped
            _log.warning("checkpoint_incomplete", path=str(path), error=str(error).split("\n")[0])
        else:
            return SavedState(saved.number, path, saved.is_savepoint)
        finally:
            stream.close()
    return None


def _watch(
    rest: str,
    job_id: str,
    state_dir: Path,
    position: Callable[[], Mapping[Partition, int]],
    cluster: Cluster | None,
) -> StuckWatch:
    at = known_or_none(position)
    return StuckWatch(rest, job_id, state_dir, at, embedded=cluster is None)
