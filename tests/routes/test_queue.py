"""Requests from many threads, under load."""

import ctypes
import gc
import re
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import randomise_gates

import vared2_fx as vr
from vared2_fx.errors import DeployError
from vared2_fx.routes import DeployedRoutes, Overloaded, QueueCounts


def test_numbers_out_of_range(deployed):
    for bad in ({"deadline_ms": 0}, {"deadline_ms": 5, "workers": 0}, {"deadline_ms": 5, "max_batch": 1.5}):
        with pytest.raises(DeployError, match="RouteQueue"):
            vr.RouteQueue(deployed, **bad)
    with vr.RouteQueue(deployed, deadline_ms=1e5) as queue:
        for bad_ms in (float("nan"), 0, -1.0, float("inf")):
            with pytest.raises(DeployError, match="deadline_ms"):
                queue.submit(torch.zeros(deployed.clip_shape), deadline_ms=bad_ms)
        assert queue.counts() == QueueCounts()


def test_a_queue_answers_as_the_network_does(deployed, clips):
    with vr.RouteQueue(deployed, deadline_ms=60_000, workers=2, max_batch=4) as queue:
        answers = [future.result() for future in [queue.submit(clip) for clip in clips]]
    wanted = deployed.answer(clips)
    for n, served in enumerate(answers):
        torch.testing.assert_close(served.output, wanted.output[n], rtol=1e-4, atol=1e-5)
        assert not served.cheaper
    assert queue.counts() == QueueCounts(submitted=len(clips), served=len(clips))
    with pytest.raises(DeployError, match="closed"):
        queue.submit(clips[0])


def test_what_cannot_be_in_time_is_shed_and_counted(deployed, clips):
    with vr.RouteQueue(deployed, deadline_ms=1e-6) as queue:
        futures = [queue.submit(clip) for clip in clips]
        for future in futures:
            with pytest.raises(Overloaded, match="deadline"):
                future.result()
    assert queue.counts() == QueueCounts(submitted=len(clips), shed=len(clips))
    with vr.RouteQueue(deployed, deadline_ms=1e5, max_queue=1, max_batch=1) as queue:
        futures = [queue.submit(clip) for clip in clips]
        assert any(isinstance(future.exception(), Overloaded) for future in futures)
        assert queue.counts().shed >= 1
        with pytest.raises(DeployError, match="it takes float32"):
            queue.submit(clips[0].double())


def test_an_engine_that_fails_fails_its_requests_only(deployed, clips, monkeypatch):
    with vr.RouteQueue(deployed, deadline_ms=1e5) as queue:
        monkeypatch.setattr(torch, "stack", lambda *_: 1 / 0)
        failed = queue.submit(clips[0])
        assert isinstance(failed.exception(), ZeroDivisionError)
        monkeypatch.undo()
        assert queue.submit(clips[0]).result().output.shape == (5,)
    assert queue.counts().failed == 1


class Clock:
    """The queue's clock, which a test may set forward: so the machine's own speed decides nothing."""

    def __init__(self, monkeypatch) -> None:
        self.ahead_s = 0.0
        monkeypatch.setattr("vared2_fx.routes.queue.time", SimpleNamespace(monotonic=self.now))

    def now(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def with_hook(deployed, before):
    """The same routes; `before` is called with the clips ahead of each answer."""

    class Hooked(DeployedRoutes):
        def answer(self, clips, point=None):
            before(clips)
            return super().answer(clips, point)

    return Hooked(**{field.name: getattr(deployed, field.name) for field in fields(deployed)})


def test_after_a_machine_stalled_requests_are_answered_again(deployed, clips, clock):
    stalls = [1000.0]  # seconds

    def stall(_) -> None:
        clock.ahead_s += stalls.pop() if stalls else 0.0

    with vr.RouteQueue(with_hook(deployed, stall), deadline_ms=60_000) as queue:
        queue.submit(clips[0]).result()
        assert isinstance(queue.submit(clips[0]).exception(), Overloaded)  # by what the last batch took
        answers = [queue.submit(clips[0]).exception() for _ in range(100)]
    assert answers[-1] is None
    assert queue.counts().shed < 100


def test_times_that_were_measured_on_a_busy_machine_do_not_shed_for_ever(deployed, clips):
    """By them no route could be in time; an idle queue finds out that they can."""
    slow = replace(deployed, route_ms=(200.0,) * len(deployed.routes), router_ms=0.0)
    with vr.RouteQueue(slow, deadline_ms=200) as queue:
        answers = [queue.submit(clips[0]).exception() for _ in range(100)]
    assert isinstance(answers[0], Overloaded)
    assert answers[-1] is None


def test_deadlines_that_no_route_can_keep_are_shed_and_not_tried_again_and_again(deployed, clips, clock):
    """Each answer takes 0.2 s, as was measured, and has 0.15 s."""

    def work(_) -> None:
        clock.ahead_s += 0.2

    slow = replace(deployed, route_ms=(200.0,) * len(deployed.routes), router_ms=0.0)
    with vr.RouteQueue(with_hook(slow, work), deadline_ms=150) as queue:
        for _ in range(200):
            queue.submit(clips[0]).exception()
    assert queue.counts().shed > 190


def test_a_clip_may_be_filled_anew_once_it_was_submitted(deployed, clips):
    held = Held()
    with vr.RouteQueue(with_hook(deployed, held), deadline_ms=1e9) as queue:
        buffer = torch.empty_like(clips[0])
        futures = []
        for clip in clips[:6]:
            futures.append(queue.submit(buffer.copy_(clip)))
        held.go.set()
        for future, clip in zip(futures, clips, strict=False):
            torch.testing.assert_close(future.result(60).output, deployed(clip[None])[0], rtol=1e-4, atol=1e-5)


def test_an_answers_callback_may_close_the_queue(deployed, clips):
    queue, closed = vr.RouteQueue(deployed, deadline_ms=1e9), threading.Event()
    queue.submit(clips[0]).add_done_callback(lambda _: (queue.close(), closed.set()))
    assert closed.wait(60)


class Held:
    """Holds the first answer until `go`, and then calls `look` ahead of each."""

    def __init__(self, look=lambda: None) -> None:
        self.look, self.began, self.go = look, threading.Event(), threading.Event()

    def __call__(self, _) -> None:
        if self.began.is_set():
            self.look()
        self.began.set()
        self.go.wait(60)


def test_one_that_was_cancelled_harms_nobody(deployed, clips, clock):
    held = Held()
    with vr.RouteQueue(with_hook(deployed, held), deadline_ms=1e9, max_batch=2) as queue:
        first = queue.submit(clips[0])
        held.began.wait(60)
        cancelled = [queue.submit(clips[0]), queue.submit(clips[0], deadline_ms=1.0)]
        last = queue.submit(clips[1])
        assert all(future.cancel() for future in cancelled)
        clock.ahead_s += 10.0  # one is late as well
        held.go.set()
        assert first.result(60).output.shape == last.result(60).output.shape == (5,)
        assert not first.cancel()
    assert queue.counts() == QueueCounts(submitted=4, served=2, cancelled=2)


def test_what_is_late_is_shed_at_once_and_makes_nobody_cheaper(deployed, clips, clock):
    shed = []
    held = Held(lambda: shed.append(hopeless.done()))
    with vr.RouteQueue(with_hook(deployed, held), deadline_ms=1e9, budget=1.0, max_batch=1) as queue:
        futures = [queue.submit(clips[0])]
        held.began.wait(60)
        futures += [queue.submit(clip) for clip in clips[:4]]
        hopeless = queue.submit(clips[0], deadline_ms=1000)
        clock.ahead_s += 10.0
        held.go.set()
        assert not any(future.result(60).cheaper for future in futures)
        assert isinstance(hopeless.exception(60), Overloaded)
    assert shed == [True] * 4  # before any of those that came earlier


def test_a_clip_on_another_device_is_refused_before_it_meets_others(deployed, clips):
    with vr.RouteQueue(deployed, deadline_ms=1e5) as queue:
        with pytest.raises(DeployError, match=r"on meta; .*on the processor"):
            queue.submit(torch.empty(clips[0].shape, device="meta"))
        assert queue.counts() == QueueCounts()


def overload(deployed, clips, *, requests: int, threads: int, times: float, deadline_ms: float):
    """Requests from `threads` threads at `times` the rate that the wanted point sustains; answers are compared."""
    alone = torch.stack([torch.cat([d(c[None]) for c in clips]) for d in deployed.routes], 1)  # (N, K, classes)
    start = time.perf_counter()
    for _ in range(3):
        for clip in clips:
            deployed(clip[None], budget=1.0)
    pause = threads * (time.perf_counter() - start) / (3 * len(clips)) / times
    wrong, done = [], []

    def ask(number: int) -> None:
        asked, due = [], time.perf_counter()
        for n in range(number, requests, threads):
            asked.append((n % len(clips), queue.submit(clips[n % len(clips)])))
            due += pause
            time.sleep(max(0.0, due - time.perf_counter()))
            if len(asked) > 50:
                check(asked.pop(0))
        for pair in asked:
            check(pair)

    def check(pair) -> None:
        place, future = pair
        if isinstance(future.exception(), Overloaded):
            return
        served = future.result()
        done.append((served.ms, served.cheaper))  # no answer is kept: what is left then is the queue's
        if not torch.allclose(served.output, alone[place, served.route], rtol=1e-4, atol=1e-5):
            wrong.append(place)

    with vr.RouteQueue(deployed, deadline_ms=deadline_ms, budget=1.0) as queue:
        workers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return queue.counts(), done, wrong


def test_under_load_answers_are_right_and_everything_is_counted(deployed, clips):
    counts, done, wrong = overload(deployed, clips, requests=400, threads=8, times=2.0, deadline_ms=100)
    assert not wrong
    assert counts.submitted == 400 == counts.served + counts.shed
    assert counts.failed == 0
    assert len(done) == counts.served
    assert sum(cheaper for _, cheaper in done) == counts.cheaper


@pytest.fixture(scope="module")
def larger():
    """A network whose engine takes most of the time, as for any of use; and clips for it, some quiet, some loud."""
    torch.manual_seed(0)
    base = vr.zoo.load("vared2_demo", pretrained=True)
    clips = vr.zoo.spec("vared2_demo").example_inputs(24) * torch.logspace(-1, 1, 24).view(-1, 1, 1, 1, 1)
    dynamic = vr.convert(base, clips[:1], vr.ConvertConfig(granularity="block", channel_shares=(1.0,)))
    randomise_gates(dynamic, clips)
    loader = [(part, dynamic(part).argmax(1)) for part in clips.split(8)]
    routed = vr.train_router(dynamic, vr.find_routes(dynamic, loader), loader, loader)
    return vr.deploy_routed(routed, "onnx", threads=1), clips


STATUS = Path("/proc/self/status")
GROWTH_KIB = 50_000
"""That much memory may come and go; a clip of `larger` takes 768 KiB."""
needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="memory in use is read from /proc")


def memory_kib() -> int:
    """Memory that this process uses now; what the allocator holds of freed memory, up to 80 MB, is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())[1])


@pytest.mark.slow
@needs_proc
def test_ten_thousand_requests_at_twice_the_rate(larger):
    deployed, clips = larger
    deadline_ms = 20 * deployed.route_ms[-1]
    ask = {"threads": 8, "times": 2.0, "deadline_ms": deadline_ms}
    for n in range(1, 9):  # the engine's buffers reach their size
        for network in (*deployed.routes, deployed.router):
            network(clips[:n])
    overload(deployed, clips, requests=500, **ask)
    before = memory_kib()
    counts, done, wrong = overload(deployed, clips, requests=10_000, **ask)
    grown = memory_kib() - before
    print(f"{deployed}\n{counts}, {grown} KiB more, longest {max(ms for ms, _ in done):.0f} ms")
    assert not wrong
    assert counts.submitted == 10_000 == counts.served + counts.shed
    assert counts.cheaper > 0.5 * counts.served
    assert counts.served > 0.5 * counts.submitted
    assert counts.late < 0.01 * counts.served  # a thread may be held up
    assert grown < GROWTH_KIB


@pytest.mark.slow
@needs_proc
def test_memory_that_is_kept_is_noticed(larger):
    """The control: the test above fails if as little as one clip in fifty is kept."""
    deployed, clips = larger
    kept = []
    before = memory_kib()
    counts, _, wrong = overload(
        with_hook(deployed, kept.append), clips, requests=200, threads=8, times=2.0, deadline_ms=1e9
    )
    assert not wrong
    assert counts.served == 200 < sum(map(len, kept))
    assert memory_kib() - before > GROWTH_KIB
