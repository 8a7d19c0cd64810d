"""What this machine achieves without HTTP: the server's own code decodes, runs and encodes in a process of its own."""

import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.load.images import Payload
from export.errors import SegpressError, WorkFailedError
from export.images import U8
from serve.answers import to_png
from serve.folders import ModelFolders
from serve.memory import keep_freed
from serve.metrics import Stages
from serve.pipeline import Sizes, WholeWork, decoded, run_together
from serve.predictor import Predictor, SessionSettings, open_newest
from serve.settings import ServeSettings

_WARM_UP = 3


@dataclass(frozen=True)
class Turn:
    """What was done in one turn."""

    milliseconds: tuple[float, ...]
    """Of each image, from file to file."""
    model_milliseconds: tuple[float, ...]
    """Of each image, the part that the model's run took."""
    seconds: float

    @property
    def throughput(self) -> float:
        return len(self.milliseconds) / self.seconds


class Limit:
    """The process that does the server's work without a server; idle between turns."""

    def __init__(self, connection: "Connection[tuple[int, float], Turn]") -> None:
        self._connection = connection

    def turn(self, workers: int, seconds: float) -> Turn:
        """Work on image after image in `workers` threads for `seconds`; what has begun is finished.

        Raises WorkFailedError if the process has ended.
        """
        try:
            self._connection.send((workers, seconds))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkFailedError("the process that works without HTTP has ended; its messages are above") from error


@contextmanager
def limit(bundle: Path, settings: ServeSettings, payload: Payload) -> Iterator[Limit]:
    """Start that process, with one shared session of `bundle`, set up by `settings` as the server's is."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, bundle, settings, payload), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Limit(ours)
    finally:
        ours.close()
        process.join(10)
        process.kill()
        process.join()


def _work(parent: "Connection[Turn, tuple[int, float]]", bundle: Path, settings: ServeSettings, sent: Payload) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    keep_freed()  # as the server does
    session = SessionSettings.of(settings)
    try:
        [predictor] = open_newest(ModelFolders([bundle]), session)
    except SegpressError as error:
        logging.getLogger(__name__).error("%s", error)
        raise SystemExit(error.exit_status) from error
    sizes = Sizes(max_pixels=settings.max_pixels, bucket=settings.size_bucket)
    for file in sent.files[:_WARM_UP]:
        _answered(predictor, sizes, file)
    while True:
        try:
            workers, seconds = parent.recv()
        except EOFError:
            return
        parent.send(_turn(predictor, sizes, sent.files, workers, seconds))


def _turn(predictor: Predictor, sizes: Sizes, files: tuple[bytes, ...], workers: int, seconds: float) -> Turn:
    begun = time.perf_counter()
    numbers = count()

    def one(_: int) -> list[tuple[float, float]]:
        taken = []
        while (start := time.perf_counter()) - begun < seconds:
            model_ms = _answered(predictor, sizes, files[next(numbers) % len(files)])
            taken.append((1e3 * (time.perf_counter() - start), model_ms))
        return taken

    with ThreadPoolExecutor(workers) as pool:
        taken = [times for part in pool.map(one, range(workers)) for times in part]
    return Turn(tuple(whole for whole, _ in taken), tuple(model for _, model in taken), time.perf_counter() - begun)


def _answered(predictor: Predictor, sizes: Sizes, file: bytes) -> float:
    """Answer one image; return the milliseconds of the model's run."""
    manifest = predictor.manifest

    def read() -> list[U8]:
        return [decoded(file, manifest, max_pixels=sizes.max_pixels)]

    stages = Stages()
    work = WholeWork(predictor, stages, sizes, read, lambda masks_NHW: to_png(masks_NHW[0], manifest))
    [outcome] = run_together([work])
    if isinstance(outcome, Exception):
        raise outcome
    return 1e3 * stages.seconds["inference"]
