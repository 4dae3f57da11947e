"""`RouteQueue`: requests from many threads, each with a deadline, which cheaper routes keep under load."""

import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor

from vared2_fx.errors import DeployError
from vared2_fx.routes.curve import Point
from vared2_fx.routes.deployed import DeployedRoutes

_MARGIN = 0.7
"""Share of the time left that is planned with: routes are chosen by mean times, and the machine does other things."""
_MEMORY = 0.8
"""Weight of the past in how much slower than measured the routes run under load."""
_FASTEST = 0.25
"""Of the measured times; batches can be faster than single clips, and other work may have slowed the measuring."""
_FORGET = 0.99
"""Weight of the past in how fast the machine can be, while nothing runs that would show it."""


class Overloaded(DeployError):
    """A request was shed: not even the cheapest route could have kept its deadline, or the queue was full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The answer to one request."""

    output: Tensor
    """Class scores, (classes,)."""
    route: int
    """The route that answered; 0 is the cheapest."""
    ms: float
    """From `submit` to the answer, in milliseconds."""
    cheaper: bool
    """Load made it be answered at a cheaper operating point than asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueCounts:
    """What became of the requests so far."""

    submitted: int = 0
    """All; those still waiting are in none of the others."""
    served: int = 0
    """Answered."""
    cheaper: int = 0
    """Of these, at a cheaper operating point than asked for."""
    late: int = 0
    """Of these, after their deadline."""
    shed: int = 0
    """Refused with `Overloaded`."""
    cancelled: int = 0
    """Given up by whoever asked, before a worker took them."""
    failed: int = 0
    """The engine failed."""


@dataclass(frozen=True, slots=True)
class _Request:
    clip: Tensor
    future: "Future[Served]"
    came: float
    deadline: float


class RouteQueue:
    """Holds deployed routes for a server: `submit` from any thread, workers answer in the order of coming.

    As long as there is time, clips are answered at the wanted operating point. The longer the queue and the nearer the
    deadlines, the cheaper the point that is taken; what even the cheapest would answer too late is shed at the next
    batch and counted, instead of making all others late, too. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        deployed: DeployedRoutes,
        *,
        deadline_ms: float,
        budget: float | None = None,
        workers: int = 1,
        max_batch: int = 8,
        max_queue: int = 1000,
    ) -> None:
        """Start the workers.

        Args:
            deployed: router and routes.
            deadline_ms: in which a request is to be answered, in milliseconds, unless it says otherwise.
            budget: of the wanted operating point, as for `DeployedRoutes.point`.
            workers: threads that run the engine; each call also uses the threads that `deployed` was made with.
            max_batch: clips that a worker takes at once.
            max_queue: waiting requests; more are shed.

        Raises:
            DeployError: a number out of range.
        """
        _check_numbers(deadline_ms=deadline_ms, workers=workers, max_batch=max_batch, max_queue=max_queue)
        self._deployed, self._deadline_s = deployed, deadline_ms / 1e3
        self._wanted = deployed.point(budget=budget)
        points = [p for p in deployed.curve if p.share <= self._wanted.share]
        self._points = sorted(points or [self._wanted], key=deployed.expected_ms)
        self._max_batch, self._max_queue, self._num_workers = int(max_batch), int(max_queue), int(workers)
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._counts, self._closed, self._slowness = QueueCounts(), False, 1.0
        self._fastest = _FASTEST  # that it can be: until something has run, the measured times may be wrong
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._num_workers)]
        for worker in self._workers:
            worker.start()

    def submit(self, clip: Tensor, *, deadline_ms: float | None = None) -> "Future[Served]":
        """Ask for an answer; returns at once.

        Args:
            clip: (C, T, H, W), float32, on the processor. It is copied: the caller may fill it anew.
            deadline_ms: milliseconds from now, if others than the queue's.

        Returns:
            A future: `Served`, or the exception `Overloaded`.

        Raises:
            DeployError: a clip of another size or type, or on another device; `deadline_ms` is no positive number; or
                the queue is closed.
        """
        if deadline_ms is not None:
            _check_numbers(deadline_ms=deadline_ms)
        known = clip.dtype == torch.float32 and clip.device.type == "cpu"
        if tuple(clip.shape) != self._deployed.clip_shape or not known:
            raise DeployError(
                f"RouteQueue: a clip of {tuple(clip.shape)}, {clip.dtype} on {clip.device}; it takes float32 "
                f"{self._deployed.clip_shape} on the processor (`clip.float().cpu()`)."
            )
        now = time.monotonic()
        limit = self._deadline_s if deadline_ms is None else deadline_ms / 1e3
        request = _Request(clip.detach().clone(), Future(), now, now + limit)
        with self._changed:
            if self._closed:
                raise DeployError("RouteQueue: it is closed.")
            self._count(submitted=1)
            full = len(self._waiting) >= self._max_queue
            if full:
                self._count(shed=1)
            else:
                self._waiting.append(request)
                self._changed.notify()
        if full:
            request.future.set_exception(Overloaded(f"RouteQueue: {self._max_queue} requests are waiting."))
        return request.future

    def counts(self) -> QueueCounts:
        """What became of the requests so far."""
        with self._changed:
            return self._counts

    def close(self) -> None:
        """Take no more requests, answer those that wait, end the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            if worker is not threading.current_thread():  # a future's callback may close it
                worker.join()

    def __enter__(self) -> "RouteQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{k: getattr(self._counts, k) + n for k, n in more.items()})

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                late, batch, point = self._take(time.monotonic())
                self._count(shed=len(late))
            for request in late:
                request.future.set_exception(Overloaded("RouteQueue: its deadline cannot be kept by any route."))
            if batch:
                self._answer(batch, point)

    def _take(self, now: float) -> tuple[list[_Request], list[_Request], Point]:
        """What is shed, what is answered next, and at which point; called with the lock held.

        A batch is as large as the cheapest point can answer before its first deadline; the point is the best at which
        the batch is in time whatever routes its clips take, and all that wait behind it are in the mean.
        """
        cost = {point: self._slowness * self._deployed.expected_ms(point) / 1e3 for point in self._points}
        cheapest = cost[self._points[0]]
        late = self._take_late(now, cheapest)
        batch, soonest = list[_Request](), math.inf
        while self._waiting and len(batch) < self._max_batch:
            left = self._waiting[0].deadline - now
            if batch and _MARGIN * min(soonest, left) < cheapest * (len(batch) + 1):
                break
            request = self._waiting.popleft()
            if self._begin(request):
                soonest = min(soonest, left)
                batch.append(request)
        if not batch:
            if late:  # nothing runs that would show that the machine is fast again
                self._fastest = max(_FASTEST, _FORGET * self._fastest)
                self._slowness = max(self._fastest, _MEMORY * self._slowness)
            return late, batch, self._points[0]
        behind = enumerate(self._waiting, start=len(batch) + 1)
        per_clip = min(((r.deadline - now) * self._num_workers / place for place, r in behind), default=math.inf)

        def fits(point: Point) -> bool:
            worst = self._slowness * self._deployed.longest_ms(point) / 1e3
            return cost[point] <= _MARGIN * per_clip and worst * len(batch) <= soonest

        return late, batch, max(filter(fits, self._points), key=lambda p: p.quality, default=self._points[0])

    def _take_late(self, now: float, cheapest: float) -> list[_Request]:
        """Those that the cheapest point, `cheapest` seconds a clip, cannot answer in time, wherever they wait."""
        late, kept = list[_Request](), deque[_Request]()
        for request in self._waiting:
            (late if _MARGIN * (request.deadline - now) < cheapest else kept).append(request)
        self._waiting = kept
        return [request for request in late if self._begin(request)]

    def _begin(self, request: _Request) -> bool:
        """From here on a request cannot be cancelled; False, and counted, where it was."""
        begun = request.future.set_running_or_notify_cancel()
        if not begun:
            self._count(cancelled=1)
        return begun

    def _answer(self, batch: list[_Request], point: Point) -> None:
        start = time.monotonic()
        try:
            answer = self._deployed.answer(torch.stack([request.clip for request in batch]), point)
        except Exception as exc:
            with self._changed:
                self._count(failed=len(batch))
            for request in batch:
                request.future.set_exception(exc)
            return
        end = time.monotonic()
        cheaper = point.share < self._wanted.share
        measured = 1e3 * (end - start) / self._deployed.ms_of(answer, point)
        with self._changed:
            self._fastest = max(_FASTEST, min(1.0, measured))
            self._slowness = max(_FASTEST, _MEMORY * self._slowness + (1 - _MEMORY) * measured)
            num_late = sum(end > request.deadline for request in batch)
            self._count(served=len(batch), cheaper=len(batch) * cheaper, late=num_late)
        routes = torch.where(answer.again, len(self._deployed.routes) - 1, answer.routes).tolist()
        for request, output, route in zip(batch, answer.output, routes, strict=True):
            ms = 1e3 * (end - request.came)
            request.future.set_result(Served(output=output.clone(), route=route, ms=ms, cheaper=cheaper))


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not 0 < value < math.inf or (name != "deadline_ms" and value != int(value)):
            what = "milliseconds" if name == "deadline_ms" else "a whole number"
            raise DeployError(f"RouteQueue: {name}={value!r}; {what} above 0.")
