"""Where the work on shards is done: by processes of this machine, or by Ray on many.

Both give `map`: a function over tasks, results in the order of the tasks, so that what is written is the same. A task
is a shard, or a range of keys; it reads and writes files that every machine sees, and a result is small. Knows nothing
of what the work is.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from megatron.curation.run.options import RunOptions
from megatron.curation.run.record_io import Source
from megatron.data.preprocessing.ordered_map import Workers
from megatron.errors import ConfigError, DataError, MegatronError
from megatron.logging import get_logger

logger = get_logger(__name__)

AHEAD = 4  # results that may wait for an earlier one, for each task at a time
RETRIES = 3  # of a task whose process or machine died


class Pool(Protocol):
    """Workers, as long as they are needed."""

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Give function(task) for every task, in order. May be called once."""
        ...


# Makes the workers that apply a function to so many tasks.
MakePool = Callable[[Callable[[Any], Any], int], AbstractContextManager[Pool]]


def pool_of(options: RunOptions) -> MakePool:
    """Give what makes the workers of a run."""

    def make(function: Callable[[Any], Any], num_tasks: int) -> AbstractContextManager[Pool]:
        num_workers = min(options.workers, num_tasks)
        if options.ray is None:
            return Workers(function, num_workers)
        return RayWorkers(
            function, num_workers, address=options.ray, folder=options.folder.resolve()
        )

    return make


class ShardTask(Protocol):
    """The work on one shard."""

    @property
    def source(self) -> Source: ...


Task = TypeVar("Task", bound=ShardTask)
Result = TypeVar("Result")


def each_shard(
    tasks: Sequence[Task],
    done: Callable[[Task], Result | None],
    work: Callable[[Task], Result],
    pool: MakePool,
    on_bytes: Callable[[int], object],
    *,
    name: str,
) -> Iterator[Result]:
    """Give what is known of every shard: of those that are done first, then of the others, as they are done in order.

    on_bytes is told the bytes of input of each; name: of the work, for people.
    """
    left = []
    for task in tasks:
        if (result := done(task)) is None:
            left.append(task)
        else:
            yield result
            on_bytes(task.source.num_bytes)
    num_done = len(tasks) - len(left)
    if num_done:
        logger.info("continuing %s: %d of %d shards are done", name, num_done, len(tasks))
    if left:
        with pool(work, len(left)) as workers:
            for task, result in zip(left, workers.map(left), strict=True):
                yield result
                on_bytes(task.source.num_bytes)


class RayWorkers:
    """Tasks of Ray that apply one function, so many at a time, on whatever machines its cluster has by then.

    A task whose process or machine dies is done again, up to three times. A MegatronError in a task is raised in the
    caller in its turn, any other exception with its traceback.
    """

    def __init__(
        self, function: Callable[[Any], Any], num_workers: int, *, address: str, folder: Path
    ) -> None:
        """Join the cluster, or start one; folder: the run's, which all machines must see."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--ray needs Ray: pip install 'ray>=2.40', on every machine")
        import ray

        self._ray = ray
        self._num_workers = num_workers
        _join(address, num_workers)
        root = str(Path(__file__).parents[3])
        self._task = ray.remote(max_retries=RETRIES)(_task(root, str(folder)))
        self._function = ray.put(ray.cloudpickle.dumps(function))

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:  # nobody waits for what is still going on
            self._ray.shutdown()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Give function(task) for every task, in order. May be called once."""
        ray, source = self._ray, iter(tasks)
        ordered: deque[Any] = deque()
        running: list[Any] = []
        has_more = True
        while has_more or ordered:
            while (
                has_more
                and len(running) < self._num_workers
                and len(ordered) < AHEAD * self._num_workers
            ):
                try:
                    task = next(source)
                except StopIteration:
                    has_more = False
                    break
                running.append(self._task.remote(self._function, ray.cloudpickle.dumps(task)))
                ordered.append(running[-1])
            if running:
                _, running = ray.wait(running, num_returns=1)
            while ordered and ordered[0] not in running:
                yield self._result(ordered.popleft())

    def _result(self, reference: Any) -> Any:
        ray = self._ray
        try:
            is_ok, value = ray.get(reference)
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
        ) as error:
            raise DataError(
                f"a task ended its process {1 + RETRIES} times, most often because memory ran out: use a smaller "
                f"--shard-mb, or machines with more ({type(error).__name__})"
            ) from error
        if not is_ok:
            raise value
        return value


def _join(address: str, num_workers: int) -> None:
    """Become a driver of the cluster at an address: `auto` is this machine's, `local` one that ends with this run."""
    import ray

    if ray.is_initialized():
        return
    try:
        if address == "local":
            ray.init("local", num_cpus=num_workers, include_dashboard=False)
        else:
            ray.init(address, log_to_driver=True)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers ({str(error).splitlines()[0]}); start one with 'ray start --head' "
            "and 'ray start --address=HOST:PORT' on the others, or give --ray local"
        ) from None


def _task(root: str, folder: str) -> Callable[[bytes, bytes], tuple[bool, Any]]:
    """Give what Ray runs; it is sent as it stands, so a machine needs only to find this very code at `root`."""

    def run(function: bytes, task: bytes) -> tuple[bool, Any]:
        import importlib
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        apply = importlib.import_module("megatron.curation.run.pool").apply
        answer: tuple[bool, Any] = apply(function, task, folder)
        return answer

    return run


def apply(function: bytes, task: bytes, folder: str) -> tuple[bool, Any]:
    """Do a task of Ray: give (True, the result) or (False, the error of the user)."""
    import pickle
    import socket

    try:
        if not Path(folder).is_dir():
            raise DataError(
                f"--output {folder} is not there on {socket.gethostname()}; name a folder that all machines see"
            )
        return True, _loaded(function)(pickle.loads(task))
    except MegatronError as error:
        return False, error


@functools.lru_cache(maxsize=1)
def _loaded(function: bytes) -> Callable[[Any], Any]:
    """Load a function, once for all tasks of a pool that a process does: a tokenizer takes a second."""
    import pickle

    loaded: Callable[[Any], Any] = pickle.loads(function)
    return loaded
