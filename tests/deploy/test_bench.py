"""`bench`: what is compared with what, what the numbers mean, what is told about them."""

import json
import time

import pytest
import torch
from networks import Net, make_clip, tiny_net
from torch import nn

import vared2_fx as vr
from vared2_fx.deploy.engines import BY_NAME
from vared2_fx.errors import DeployError
from vared2_fx.turns import in_turns

CLIP = make_clip(1, 3, 8, 16, 16)


def test_in_turns():
    seen: list[str] = []
    runs = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = in_turns(runs, rounds=20, warmup=2, wait=lambda: seen.append("."))
    text = "".join(seen)
    assert text.startswith("abab.")
    rounds = [text[start : start + 6] for start in range(4, len(text), 6)]
    assert len(rounds) == 20
    assert set(rounds) == {".a..b.", ".b..a."}
    assert {name: len(values) for name, values in times.items()} == {"a": 20, "b": 20}


def test_times_are_milliseconds():
    (times,) = in_turns({"sleep": lambda: time.sleep(0.02)}, rounds=3).values()
    assert all(20 <= value < 500 for value in times)


@pytest.fixture(scope="module")
def result():
    static = vr.specialize(vr.convert(tiny_net(), CLIP), {"*": (2, 1.0)})
    return vr.bench(tiny_net(), {"half": static}, example_inputs=CLIP, batch_size=2, threads=1, rounds=4, warmup=1)


def test_numbers(result):
    (half,) = result.variants
    assert (result.network, result.engine, result.precision, result.threads) == ("TinyNet", "torch", "fp32", 1)
    assert (result.batch_size, result.inputs, result.rounds) == (2, ((2, 3, 8, 16, 16),), 4)
    assert result.base.macs == vr.scan(tiny_net(), CLIP).macs  # per clip, though two were run
    assert half.ideal_speed_up == result.base.macs / half.macs > 1.5
    assert half.share == pytest.approx((half.speed_up - 1) / (half.ideal_speed_up - 1))
    assert (result.base.speed_up, result.base.ideal_speed_up, result.base.share) == (1, 1, None)
    for timed in (result.base, half):
        assert 0 < timed.min_ms <= timed.low_ms <= timed.ms <= timed.high_ms <= timed.max_ms
        assert timed.low_speed_up <= timed.speed_up <= timed.high_speed_up


def test_as_json_and_as_text(result):
    document = json.loads(result.to_json())
    assert (document["schema"], document["version"]) == ("vared2_fx.bench", 1)
    assert document["variants"][0]["share"] == result.variants[0].share
    assert document["versions"].keys() == {"vared2_fx", "torch"}
    assert document["processor"]
    assert document["layout"] == "channels_last_3d"
    text = str(result)
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "TinyNet in torch, fp32, 1 thread, batch 2: 2×3×8×16×16",
        "half",
        torch.__version__.split("+")[0],
        "share",
    ):
        assert part in text


def test_speed_ups_are_of_the_same_round(monkeypatch):
    """The machine slows down from round to round; the ratio stays."""
    calls = {"base": 0, "fast": 0}

    class Engine(BY_NAME["torch"]):
        def run(self, tensors):
            kind = (
                "base"
                if self.exported.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default)
                else "fast"
            )
            calls[kind] += 1
            time.sleep((0.01 if kind == "base" else 0.005) * (1 + calls[kind] % 4))
            return super().run(tensors)

    class Marked(Net):
        def forward(self, x):
            return super().forward(x.tanh())

    monkeypatch.setitem(BY_NAME, "torch", Engine)
    measured = vr.bench(Marked(), {"fast": Net()}, example_inputs=CLIP, rounds=8, warmup=0)
    assert measured.variants[0].speed_up == pytest.approx(2, rel=0.2)
    assert measured.base.high_ms > 1.3 * measured.base.low_ms


def test_every_engine(quick_engine):
    measured = vr.bench(Net(), {"same": Net()}, engine=quick_engine, example_inputs=CLIP, rounds=2, warmup=1)
    assert measured.engine == quick_engine
    assert measured.variants[0].ideal_speed_up == 1
    assert measured.variants[0].share is None
    packages = {"onnx": {"onnx", "onnxruntime"}, "openvino": {"openvino"}}.get(quick_engine, set())
    assert measured.versions.keys() == {"vared2_fx", "torch"} | packages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": {"base": Net()}}, "a variant is called 'base'"),
        ({"rounds": 1}, "rounds=1; it must be a number of at least 2"),
        ({"batch_size": 0}, "batch_size=0; it must be a number of at least 1"),
        ({"engine": "tensorrt"}, "no engine 'tensorrt'"),
        ({"variants": {"gates": vr.convert(tiny_net(), CLIP)}}, "still has gates"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(DeployError, match=message):
        vr.bench(Net(), example_inputs=CLIP, **options)


class OtherWithSeveral(nn.Module):
    """Its graph holds for one number of clips."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()

    def forward(self, video):
        scores = self.net(video)
        return scores * 2 if len(video) > 1 else scores


def test_a_graph_for_one_number_of_clips_is_deployed_on_that_number():
    result = vr.bench(OtherWithSeveral(), example_inputs=CLIP, batch_size=3, threads=1, rounds=2, warmup=0)
    assert (result.batch_size, result.inputs) == (3, ((3, 3, 8, 16, 16),))
    assert any("takes 3 clips" in note for note in result.base.notes)
