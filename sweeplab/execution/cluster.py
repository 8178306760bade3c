"""The Ray session: settings that must stand before Ray is imported, start or attach, and what the cluster has."""

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeplab.data.cores import usable_cores
from sweeplab.execution.watchdog import (
    RAYLET_DIED,
    cluster_lost,
    is_left_behind,
    leave_behind,
    rearm_signals,
    run_beside,
)
from sweeplab.experiment import Resources
from sweeplab.live_line import phase
from sweeplab.specs import ClusterLost, InvalidInput, StorageFault, Unfinished, first_line
from sweeplab.storage.files import make_private, storage_faults
from sweeplab.storage.locks import RAY_FOLDER, OwnFolder, ray_parent

logger = logging.getLogger("sweeplab")

SETTINGS = {
    "RAY_AUTH_MODE": "token",  # said explicitly: the command line and the library differ in their default
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",  # workers at nice 15 starve beside anything else
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how late Train's results arrive
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger keeps the results
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own state is never read again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the controller, not Tune, knows the metric
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call outside a session is an error, not a cluster of its own
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

LOOPBACK = "127.0.0.1"

_raylet: tuple[str, int] | None = None
"""Where the raylet of this command's node listens."""

_is_private = False
"""Whether this command has started its cluster, which is one node then."""


def is_private() -> bool:
    """Whether the cluster is this command's own: one node, which no other joins."""
    return _is_private


@contextmanager
def ray_session(*, needs_train: bool) -> Iterator[None]:
    """Attach to the running cluster (a Ray job, `RAY_ADDRESS`) or start one for this process, on loopback.

    Args:
        needs_train: whether Ray Train will run; its clean-up asks the dashboard's state service, without which a dead
            worker would block the sweep.

    Raises:
        InvalidInput: if no cluster answers or can be started here.
        Unfinished: if one of its processes died or was too slow.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        raise InvalidInput(
            f"uid {os.getuid()} has no home, below which Ray keeps its access token: HOME is not set, and there is no "
            "passwd entry; set HOME to a folder of yours"
        )
    for name, value in SETTINGS.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    import ray

    if _ending is not None:  # the session of the sweep before
        _ending.join(ENDING_SECONDS)
    if ray.is_initialized():
        yield
        return
    # Ray's own lines would tear the progress line; what matters is raised.
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _private_folder() as folder:
        is_over, has_ended = threading.Event(), threading.Event()
        _come_up(folder, has_ended, needs_train=needs_train)
        try:
            _find_raylet()
            if needs_train:
                threading.Thread(
                    target=_free_abandoned_groups, args=(is_over,), name="placement groups", daemon=True
                ).start()
            yield
        except Exception as error:
            is_lost = isinstance(error, ClusterLost)
            if not is_lost and (isinstance(error, StorageFault) or not raylet_is_gone()):
                raise
            leave_behind(has_ended)  # what Ray was asked may never be answered
            if is_lost:
                raise
            raise cluster_lost() from error
        finally:
            is_over.set()
            # A thread that still uses Ray when it is shut down has Ray end the process, with an exit code of its own.
            # Left up, it serves this process's next sweep, or ends with the process.
            if not is_left_behind():
                _shut_down(has_ended)


def _come_up(folder: str, has_ended: threading.Event, *, needs_train: bool) -> None:
    """Attach to the running cluster, or start one.

    Args:
        folder: of the one that is started.
        has_ended: set once it was shut down.
        needs_train: see `ray_session`.

    Raises:
        InvalidInput: if it cannot be reached, or Ray refuses to start.
        Unfinished: if one of its processes died or was too slow.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

    def start() -> None:
        global _is_private
        _is_private = not _attach(quiet)
        if _is_private:
            _start(folder, quiet, needs_train=needs_train)

    try:
        # Seconds of foreign code. Ray has its processes die with their parent, which for the kernel is the thread.
        run_beside(start, rearm_signals, stay=has_ended)
        rearm_signals()
    except Unfinished:
        raise
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise InvalidInput(f"Ray could not be started or reached: {error}; see `sweeplab doctor`") from error
    except Exception as error:
        # One of its processes died or was too slow, for which Ray has no error of its own.
        raise Unfinished(f"Ray did not come up ({first_line(error)}); the same command tries again") from error


def _start(folder: str, quiet: dict[str, Any], *, needs_train: bool) -> None:
    """Start a private cluster."""
    import ray

    logger.info("starting Ray")

    with _own_address() as address, _loopback_alone(), phase("starting Ray"):
        try:
            ray.init(
                address="local",
                num_cpus=fewer_cores(),
                include_dashboard=needs_train,
                dashboard_host=LOOPBACK,
                _temp_dir=folder,
                **quiet,
            )
        except RuntimeError as error:
            if answers(address, as_ray=False):  # no process of ours, since none came up
                raise Unfinished(
                    f"Ray did not come up: another process took {address} just before; the same command takes another"
                ) from error
            raise


def fewer_cores() -> int | None:
    """The cores that this process may use, where those are not all of the machine's (`taskset`, a cpuset); None: Ray
    counts by itself, which minds a container's quota."""
    usable = usable_cores()
    return usable if usable < (os.cpu_count() or usable) else None


@contextmanager
def _own_address() -> Iterator[str]:
    """Choose the private cluster's address beforehand, so that its own processes know it.

    Ray Train frees a dead run's workers by asking the cluster's state, whose address it would otherwise look for among
    all clusters of this machine: with two of them it finds none, and the resources are never freed.
    """
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    address = f"{LOOPBACK}:{port}"
    with _environment(RAY_GCS_SERVER_PORT=str(port), RAY_ADDRESS=address):
        yield address


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """Have every process of a private cluster listen on this machine's loopback alone, as Ray has it on macOS.

    Given the address, Ray listens on it only for some of them; without clusters of several machines, for all.
    """
    from ray._private import ray_constants

    was_enabled, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with _environment(**{ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was_enabled


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables of the environment, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _private_folder() -> Iterator[str]:
    """A temporary folder, which an interrupted command leaves to the next one: to remove it may take seconds.

    Ray opens the folder that it is given to all users, and its logs too: the one above it stays this user's alone.
    """
    folder = OwnFolder(RAY_FOLDER, ray_parent())
    try:
        yield str(folder.path / "r")  # short: the paths of Ray's sockets may have 107 bytes in all
    finally:
        if not is_left_behind():
            folder.remove()


SHUTDOWN_SECONDS = 1.5
"""Ray gets no longer to end in order: `ray job stop` leaves three seconds, and Ray's state is never read again."""

ENDING_SECONDS = 30.0
"""So long may it take where another session follows, or nothing went wrong."""

_ending: threading.Thread | None = None
"""What ends, or has ended, the last session."""


def _shut_down(has_ended: threading.Event) -> None:
    global _raylet, _ending
    import ray

    def end() -> None:
        ray.shutdown()
        has_ended.set()

    _raylet = None
    _ending = threading.Thread(target=end, name="ray shutdown", daemon=True)
    _ending.start()
    _ending.join(SHUTDOWN_SECONDS if sys.exc_info()[0] is not None else ENDING_SECONDS)


def _attach(quiet: dict[str, Any]) -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or else one that `ray start` left running on this machine.

    Never `address="auto"`: it looks through the machine's processes and would join the private cluster of another
    sweep, or one that is just dying with its killed driver.
    """
    import ray
    from ray._private.utils import read_ray_address

    asked = os.environ.get("RAY_ADDRESS")
    address = read_ray_address() if asked in (None, "auto") else asked
    if address is not None and answers(address):
        ray.init(address=address, **quiet)
        return True
    if asked is None:  # nothing runs here, or what `ray start` has left behind is gone
        return False
    raise InvalidInput(cannot_attach(asked))


def cannot_attach(asked: str) -> str:
    """Why a command cannot join the cluster that RAY_ADDRESS names."""
    remedy = "unset RAY_ADDRESS to have one started here"
    if asked.startswith("ray://"):
        return (
            f"RAY_ADDRESS={asked} is Ray Client's, through which no sweep runs; give the cluster's own address "
            f"(host:6379), or use `ray job submit`, or {remedy}"
        )
    if asked == "auto":
        return f"RAY_ADDRESS=auto, and no cluster of `ray start` answers on this machine; start one, or {remedy}"
    return f"RAY_ADDRESS={asked} does not answer as Ray does; start that cluster, correct the address, or {remedy}"


GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of HTTP/2, which Ray's processes speak, begins: its preface and empty settings."""


def answers(address: str, *, as_ray: bool = True) -> bool:
    """Whether something listens at host:port, and speaks Ray's protocol. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    is_secret = os.environ.get("RAY_USE_TLS", "0") != "0"  # then its greeting needs certificates
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            if not as_ray or is_secret:
                return True
            connection.sendall(GREETING)
            return connection.recv(4, socket.MSG_WAITALL)[3:] == b"\4"  # the server's settings
    except (OSError, ValueError, OverflowError):
        return False


def resources_per_worker(resources: Resources) -> dict[str, float]:
    """Ray's resource words for one worker.

    Raises:
        InvalidInput: if the cluster does not hold a single run.
    """
    import ray

    have = ray.cluster_resources()
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= 1 else 0.0
    for word, unit, each in (("CPU", "cpus_per_worker", resources.cpus_per_worker), ("GPU", "gpus_per_worker", gpus)):
        if each * resources.workers > have.get(word, 0) + 1e-9:
            raise InvalidInput(
                f"workers={resources.workers} x {unit}={each:g} exceeds the cluster's {have.get(word, 0):g} {word}s; "
                f"lower resources.{unit} or resources.workers, or add nodes"
            )
        largest = max(node["Resources"].get(word, 0) for node in ray.nodes() if node["Alive"])
        if each > largest + 1e-9:
            raise InvalidInput(
                f"{unit}={each:g} exceeds the {largest:g} {word}s of the cluster's largest node, and a worker runs on "
                f"one node; lower resources.{unit}"
            )
    return {"CPU": float(resources.cpus_per_worker), **({"GPU": gpus} if gpus else {})}


def concurrent_trials(resources: Resources, per_worker: dict[str, float]) -> int:
    """Trials that the cluster's nodes hold at a time, at most what was asked for; a worker runs on one node."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(_held(node, per_worker) for node in nodes)
    fits = workers // resources.workers
    if not fits:
        needed = " and ".join(f"{need:g} {word}" for word, need in per_worker.items() if need)
        raise InvalidInput(
            f"resources.workers={resources.workers}, each with {needed} on one node, find no room: the cluster's "
            f"{len(nodes)} nodes hold {workers} of them; lower resources.workers or what each takes, or add nodes"
        )
    return min(fits, resources.concurrent_trials or fits)


def share_of_cores(per_worker: dict[str, float]) -> int:
    """A node's cores for each of the workers that find room on it, of the node that has the fewest; 0 where none
    does."""
    import ray

    held = [(node["Resources"], _held(node["Resources"], per_worker)) for node in ray.nodes() if node["Alive"]]
    return min((int(node["CPU"]) // workers for node, workers in held if workers), default=0)


def _held(node: dict[str, float], per_worker: dict[str, float]) -> int:
    """Workers for which a node has all that each takes."""
    return min(_fit(node.get(word, 0), need) for word, need in per_worker.items() if need)


def _fit(have: float, need: float) -> int:
    """Workers on a node; those that take a fraction of a GPU take it of one."""
    if need < 1:
        return int(have + 1e-9) * int(1 / need + 1e-9)
    return int(have / need + 1e-9)


GROUP_SECONDS = 10.0
"""Between two looks for placement groups that nobody uses."""


def _free_abandoned_groups(is_over: threading.Event) -> None:
    """Look for them until the session ends."""
    seen: set[str] = set()
    while not is_over.wait(GROUP_SECONDS):
        with contextlib.suppress(Exception):  # the state service is busy, or the cluster is going: next time
            seen = free_abandoned_groups(seen)


def free_abandoned_groups(seen: set[str]) -> set[str]:
    """Remove this job's placement groups of workers that no actor lives in, if they were seen so before.

    Ray Train's controller makes a group, and then tells a guard of it, which frees it once the controller is dead: a
    controller that dies in between leaves the group's CPUs and GPUs taken, and its successor waits for them in vain.

    Args:
        seen: those that were empty at the last look.

    Returns:
        Those that are empty now and were not before.
    """
    import ray
    from ray.util.placement_group import PlacementGroup
    from ray.util.state import list_actors, list_placement_groups

    context = ray.get_runtime_context()
    where: dict[str, Any] = {"address": context.gcs_address, "limit": 10_000, "detail": True}
    mine = [("creator_job_id", "=", context.get_job_id()), ("state", "=", "CREATED")]
    # Only groups that hold CPUs or GPUs block anybody.
    groups = [
        group.placement_group_id
        for group in list_placement_groups(filters=mine, **where)
        if any({"CPU", "GPU"} & set(bundle["unit_resources"]) for bundle in group.bundles or ())
    ]
    if not groups:
        return set()
    used = {actor.placement_group_id for actor in list_actors(filters=[("state", "!=", "DEAD")], **where)}
    empty = set(groups) - used
    # Empty at two looks: a group that was just made has no actor in it yet.
    for group in empty & seen:
        ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
    return empty - seen


def raylet_is_gone() -> bool:
    """Whether the raylet of this command's node is known to be dead: nobody listens at its port any more."""
    if _raylet is None:
        return False
    try:
        with socket.create_connection(_raylet, timeout=1):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def _find_raylet() -> None:
    """Keep its address while the cluster can be asked."""
    global _raylet
    import ray

    here = ray.get_runtime_context().get_node_id()
    mine = [node for node in ray.nodes() if node["NodeID"] == here]
    _raylet = (mine[0]["NodeManagerAddress"], int(mine[0]["NodeManagerPort"])) if mine else None


def cluster_fault() -> str | None:
    """What is wrong with the cluster, as this driver sees it; None where its node is alive."""
    import ray

    if raylet_is_gone():
        return RAYLET_DIED
    try:
        here = ray.get_runtime_context().get_node_id()
        is_here = any(node["NodeID"] == here and node["Alive"] for node in ray.nodes())
    except Exception as error:  # noqa: BLE001 - a dying cluster raises many kinds; the watchdog reports it
        return f"the Ray cluster cannot be asked ({type(error).__name__})"
    return None if is_here else RAYLET_DIED


def scratch_folder(home: Path) -> Path:
    """Where Ray keeps state that nobody reads again."""
    folder = home / "ray"
    with storage_faults(folder):
        make_private(folder)
    return folder
