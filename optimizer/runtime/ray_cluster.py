"""Pieces of work on a Ray cluster; no other module knows Ray.

Arguments and results travel as objects of Ray, what is shared once to each machine. A piece has as many CPUs of a
machine as it can have while all others run, and computes on that many threads; on how many depends nothing that comes
out. A worker that dies loses its piece, which Ray gives to another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..errors import OnnxpressError, command_line, first_line, is_command_line, option
from ..quantization.blas import blas_threads, products_on
from ..quantization.threads import limited, threads
from .executor import ALONE, Executor, Shared
from .ray_address import CLIENT, FOUND, LOCAL, check_ray

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 5.0
"""Seconds in which who listens at an address has to show that it is one of Ray's servers."""
_FIRST_WORKER = 60.0
"""Seconds that a machine may take to start its first worker."""
_TRIES_AGAIN = 3
_GRACE = 5.0
"""Seconds in which pieces that are not wanted any more may put away their files."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}
"""Settings of Ray, where nobody else sets them. The last is for a cluster of our own: Ray ends a worker that has had
nothing to do for a second, and a new one takes seconds to import what it needs."""
_SAME = ("onnxpress", "numpy", "onnx", "onnxruntime")
"""Packages on whose version bytes depend."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBL", 0, 0, 4, 0, 0)
_SETTINGS = 4


@contextlib.contextmanager
def connected(address: str) -> Iterator[Executor]:
    """A cluster; where this process is connected to one already, that, which stays.

    Raises:
        UsageError: As `check_ray`.
        OnnxpressError: Nothing there answers as Ray does, or the machines have other versions than this one.
    """
    check_ray(address)
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        _begin(ray, address)
    try:
        cluster = _Cluster(ray, address, _checked_machines(ray, address))
        try:
            yield cluster
        finally:
            cluster.cancel()
    finally:
        if is_ours:
            ray.shutdown()


def _begin(ray: Any, address: str) -> None:
    """Connect to a cluster, or begin one."""
    if address not in (LOCAL, FOUND) and os.environ.get("RAY_USE_TLS") != "1":
        _look(address)
    here: dict[str, Any] = {"num_cpus": threads(), "include_dashboard": False} if address == LOCAL else {}
    try:
        with _signals_kept():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **here)
    except Exception as error:  # of many types
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise OnnxpressError(f"{option('ray')} {address}: {_HINTS.get(address, '')}{first_line(error)}") from error


_HINTS = {FOUND: "no cluster runs on this machine that answers; `ray start --head` begins one: "}


def _look(address: str) -> None:
    """Refuse an address where nobody speaks as gRPC does, for which Ray itself would wait for a minute."""
    host, port = address.removeprefix(CLIENT).rsplit(":", 1)
    problem = "what answers there is not Ray"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PATIENCE) as there:
            there.settimeout(_PATIENCE)
            there.sendall(_GREETING)
            if there.recv(9)[3:4] == bytes([_SETTINGS]):
                return
    except (TimeoutError, socket.timeout):  # noqa: UP041 another one in 3.9, and in sockets that Ray patches
        problem = "nobody answers"
    except (OSError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    raise OnnxpressError(
        f"{option('ray')} {address}: {problem}; see that the cluster runs (`ray status`), and that this is the port "
        "of `ray start --head` (6379), or of its client server after ray:// (10001)"
    )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """SIGTERM does what it did before, and not what Ray would have it do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checked_machines(ray: Any, address: str) -> list[int]:
    """CPUs of each machine, all of which have the versions that this process has."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise OnnxpressError(f"{option('ray')} {address}: the cluster has no CPUs")
    ask = ray.remote(num_cpus=0, max_retries=_TRIES_AGAIN)(_what_tells_versions())
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    here = _what_tells_versions()()
    for node, answer in zip(nodes, answers, strict=True):
        name = node["NodeManagerAddress"]
        try:
            there = ray.get(answer, timeout=_FIRST_WORKER)
        except ray.exceptions.RayError as error:
            raise OnnxpressError(
                f"{option('ray')} {address}: machine {name} starts no worker: {first_line(error)}"
            ) from error
        if there != here:
            unlike = [key for key in here if there.get(key) != here[key]]
            told = ", ".join(f"{key} {there.get(key) or 'is missing'} in place of {here[key]}" for key in unlike)
            raise OnnxpressError(f"{option('ray')} {address}: machine {name} is not like this one: {told}")
    return [int(node["Resources"]["CPU"]) for node in nodes]


def _what_tells_versions() -> Callable[[], dict[str, str | None]]:
    """A function that is sent as it is, for machines where onnxpress is missing."""
    packages = _SAME

    def versions() -> dict[str, str | None]:
        import importlib.metadata

        found: dict[str, str | None] = {"Python": platform.python_version()}
        for name in packages:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        return found

    return versions


class _Cluster:
    """An executor."""

    def __init__(self, ray: Any, address: str, cpus: list[int]) -> None:
        self._ray, self._address, self._cpus = ray, address, cpus
        self._work = ray.remote(_work)
        self._under_way: set[Any] = set()

    def share(self, value: T) -> Shared[T]:
        """As `Executor` says."""
        return _Put(self._ray.put(value))

    def share_made(self, value: T, make: Callable[[T], R]) -> Shared[R]:
        """As `Executor` says."""
        return _Sent(self._ray.put(value), make)

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]], count: int) -> Iterator[R]:
        """As `Executor` says; some more are asked for than can run at once."""
        cpus = max(1, min(*self._cpus, sum(self._cpus) // max(count, 1)))
        at_once = sum(each // cpus for each in self._cpus)
        place = _Place(os.getcwd(), is_command_line(), cpus, blas_threads())
        work = self._work.options(num_cpus=cpus, max_retries=_TRIES_AGAIN)
        waiting: deque[Any] = deque()
        for call in calls:
            # An object that is an argument itself is there before the work begins, which then waits for nothing.
            arguments = (each.reference if isinstance(each, _Put) else each for each in call)
            put = {at for at, each in enumerate(call) if isinstance(each, _Put)}
            waiting.append(work.remote(place, function, put, *arguments))
            self._under_way.add(waiting[-1])
            while waiting and (len(waiting) > 2 * at_once or self._ray.wait([waiting[0]], timeout=0)[0]):
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, reference: Any) -> Any:
        """Of a piece; raises what it raised."""
        exceptions = self._ray.exceptions
        try:
            is_done, found = self._ray.get(reference)
        except exceptions.RayTaskError:
            raise  # a fault of ours, with its traceback
        except exceptions.RayError as error:
            problem = f"a part of the work was lost {1 + _TRIES_AGAIN} times"
            raise OnnxpressError(f"{option('ray')} {self._address}: {problem}: {first_line(error)}") from error
        self._under_way.discard(reference)
        if not is_done:
            raise found
        return found

    def cancel(self) -> None:
        """End what nobody waits for any more."""
        left, self._under_way = list(self._under_way), set()
        if not left:
            return
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            for reference in left:
                self._ray.cancel(reference)
            _, left = self._ray.wait(left, num_returns=len(left), timeout=_GRACE)
            for reference in left:
                self._ray.cancel(reference, force=True)


@dataclasses.dataclass(frozen=True)
class _Place:
    """What a worker takes over from the process that it works for.

    Attributes:
        folder: From which paths begin.
        on_command_line: Whether messages name options.
        threads: To compute on.
        blas_threads: That a product of NumPy takes, which its last bits depend on.
    """

    folder: str
    on_command_line: bool
    threads: int
    blas_threads: int

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if os.path.isdir(self.folder):
                os.chdir(self.folder)
            if self.on_command_line:
                stack.enter_context(command_line())
            stack.enter_context(limited(self.threads))
            stack.enter_context(products_on(self.blas_threads))
            yield


def _work(place: _Place, function: Callable[..., Any], put: set[int], *arguments: Any) -> tuple[bool, Any]:
    """Do a piece in a worker: whether all went well, and what came out or was raised.

    Args:
        place: For the work.
        function: That does it.
        put: Which arguments are shared.
        arguments: Of the function.
    """
    call = [ALONE.share(each) if at in put else each for at, each in enumerate(arguments)]
    with place.taken():
        try:
            return True, function(*call)
        except OnnxpressError as error:
            return False, error


class _Put:
    """Something shared."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def get(self) -> Any:
        import ray

        return ray.get(self.reference)


class _Sent:
    """Something shared that a worker makes for itself, of what it fetches only then."""

    def __init__(self, reference: Any, make: Callable[[Any], Any]) -> None:
        self._reference, self._make = reference, make

    def get(self) -> Any:
        import ray

        key = self._reference.hex()
        if key not in _MADE:
            _MADE.clear()
            _MADE[key] = self._make(ray.get(self._reference))
        return _MADE[key]


_MADE: dict[str, Any] = {}
"""What this worker made last of something shared, by its reference."""
