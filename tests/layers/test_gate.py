"""Gates: full at the start whatever they see, never empty, exact when hard, fixed for one thread only."""

import copy
import math
import pickle
import threading

import pytest
import torch
from networks import make_clip
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid, ConvGeometry, Gate, fixed_decisions

KINDS = ("gumbel", "soft_modulation")
GRID = ChoiceGrid((1, 2, 4), (1.0, 0.5))
FULL_ROW = [1.0, 0.0, 0.0, 1.0, 0.0]
GEOMETRY = ConvGeometry.of(nn.Conv3d(3, 8, 3, padding=1))
CLIPS = {
    "noise": make_clip(4, 3, 8, 20, 20),
    "large": 1e6 * make_clip(4, 3, 8, 20, 20),
    "zeros": torch.zeros(4, 3, 8, 20, 20),
    "still": make_clip(4, 3, 1, 20, 20).expand(-1, -1, 8, -1, -1),
    "overflowing": torch.full((4, 3, 8, 20, 20), 3e38),
    "infinite": torch.full((4, 3, 8, 20, 20), float("inf")),
    "nan": torch.full((4, 3, 8, 20, 20), float("nan")),
    "one frame": make_clip(4, 3, 1, 20, 20),
    "one pixel": make_clip(4, 3, 8, 1, 1),
    "odd": make_clip(4, 3, 5, 17, 9),
}


def make_gate(kind: str = "gumbel", seed: int = 0, **options: object) -> Gate:
    torch.manual_seed(seed)
    return Gate(3, GRID, GEOMETRY.out_frames, kind=kind, **options).eval()


def deciding(gate: Gate, bias: list[float]) -> Gate:
    """Let `gate` decide by these entries alone."""
    with torch.no_grad():
        gate.out.weight.zero_()
        gate.out.bias.copy_(torch.tensor(bias))
    return gate


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_starts_with_the_full_choice(kind, clip):
    for seed in range(5):
        decision = make_gate(kind, seed)(CLIPS[clip])
        assert decision.tolist() == [FULL_ROW] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_starts_so_with_the_worst_hidden_values(kind):
    """Every hidden unit saturated, in the direction that is worst for the full choice."""
    gate = make_gate(kind)
    for entry in range(5):
        worst = -gate.out.weight[entry].sign() if entry in (0, 3) else gate.out.weight[entry].sign()
        z = gate.out(worst[None])
        assert gate._weigh(z[:, :3])[0].tolist() == FULL_ROW[:3]
        assert gate._weigh(z[:, 3:])[0].tolist() == FULL_ROW[3:]


def test_soft_modulation_starts_full_in_training_too():
    gate = make_gate("soft_modulation").train()
    assert gate(CLIPS["noise"]).tolist() == [FULL_ROW] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_gates_see_motion_and_content(kind):
    gate = make_gate(kind)
    means, *changes = gate.look(CLIPS["still"]).unflatten(1, (3, -1)).chunk(5, dim=2)
    assert means.all()
    for change in changes:
        torch.testing.assert_close(change, torch.full_like(change, math.log(1e-2)), msg="a still clip has no changes")
    for change in gate.look(CLIPS["noise"]).unflatten(1, (3, -1)).chunk(5, dim=2)[1:]:
        assert (change > math.log(1e-1)).all()


def test_motion_grows_over_two_frames_and_noise_does_not():
    noise = make_clip(1, 3, 16, 64, 64)
    ramp = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 3, 16, 64, 64)
    for clip, growth in ((noise, 0.0), (ramp, math.log(2))):
        _, over_one, _, over_two, _ = make_gate().look(clip).unflatten(1, (3, -1)).chunk(5, dim=2)
        torch.testing.assert_close(over_two - over_one, torch.full_like(over_one, growth), rtol=0, atol=0.2)


def test_features_far_from_the_data_are_held():
    gate = make_gate()
    assert gate.standardised(gate.look(CLIPS["large"])).abs().max() == 5.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 7), (16, 8, 8), (5, 17, 33), (4, 112, 112)])
def test_cost_is_counted(shape):
    """The two linear layers as a counter sees them, an operation per value looked at, cell and feature."""
    gate, (t, h, w) = make_gate(), shape
    with FlopCounterMode(display=False) as counter:
        gate(make_clip(1, 3, *shape))
    (rows, patch_h), (columns, patch_w) = (
        (len(range(0, n - patch + 1, max(1, n // 8))), patch) for n in (h, w) for patch in (2 if n >= 16 else 1,)
    )
    cells = 3 * t * rows * columns
    looked_at = cells * patch_h * patch_w
    assert gate.macs(shape) == counter.get_total_flops() // 2 + looked_at + 4 * cells + gate.hidden.in_features
    assert looked_at < 3 * t * 32 * 32


@pytest.mark.parametrize(
    ("bias", "normalize", "expected"),
    [
        ([-1, -1, -1, -1, -1], True, FULL_ROW),  # all closed: the full choice
        ([-1, -1, -1, -1, -1], False, FULL_ROW),
        ([0, 0, 0, 0, 0], True, FULL_ROW),
        ([-1, 3, -1, -1, 2], True, [0, 1, 0, 0, 1]),
        ([-1, 1, 1, 1, 1], True, [0, 0.5, 0.5, 0.5, 0.5]),
        ([-1, 1, 1, -1, 1], False, [0, 0.76159, 0.76159, 0, 0.76159]),  # tanh 1
    ],
)
def test_soft_modulation_values(bias, normalize, expected):
    gate = deciding(make_gate("soft_modulation", normalize=normalize), bias)
    torch.testing.assert_close(gate(CLIPS["noise"])[0], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [[-3.0, -2.0, -1.0, -1.0, -2.0], [2.0, -2.0, 1.0, -1.0, 2.0]])
def test_closed_entries_of_soft_modulation_can_open_again(bias):
    gate = deciding(make_gate("soft_modulation"), bias).train()
    for entry in (e for e in range(5) if not gate(CLIPS["noise"])[0, e]):
        (gradient,) = torch.autograd.grad(gate(CLIPS["noise"])[:, entry].sum(), gate.out.bias)
        assert gradient.isfinite().all()
        assert gradient[entry] > 0, "asking for a closed entry must raise it"


@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.1, 0.01])
def test_gumbel_is_exactly_one_hot_in_training(temperature):
    gate = deciding(make_gate(), [0.5, 0.0, 0.2, 0.1, 0.0]).train()
    gate.temperature.fill_(temperature)
    decision = gate(CLIPS["noise"].repeat(50, 1, 1, 1, 1))
    assert set(decision.flatten().tolist()) == {0.0, 1.0}
    assert (decision[:, :3].sum(1) == 1).all()
    assert (decision[:, 3:].sum(1) == 1).all()


def test_temperature_sets_how_often_gumbel_draws_another_choice():
    """The probabilities are softmax(z / temperature); 0.06 is three standard deviations of 600 draws."""
    gate, clip = deciding(make_gate(), [1.0, 0.0, 0.5, 0.0, 1.0]).train(), CLIPS["one pixel"].repeat(150, 1, 1, 1, 1)
    for temperature in (0.2, 1.0, 5.0):
        gate.temperature.fill_(temperature)
        drawn = gate(clip).mean(0)
        expected = torch.cat([(part / temperature).softmax(0) for part in gate.out.bias.split([3, 2])])
        torch.testing.assert_close(drawn, expected, rtol=0, atol=0.06)
    gate.eval()
    assert gate(clip).unique(dim=0).tolist() == [[1.0, 0.0, 0.0, 0.0, 1.0]]


def test_straight_through_gradient_is_that_of_the_softmax():
    gate = deciding(make_gate(), [0.5, 0.0, 0.2, 0.1, 0.0]).train()
    torch.manual_seed(1)
    decision = gate(CLIPS["noise"])
    weights = torch.arange(5.0)
    (ours,) = torch.autograd.grad((decision * weights).sum(), gate.out.bias)
    torch.manual_seed(1)
    z = gate.out.bias.expand(4, -1)
    soft = torch.cat(
        [(part - torch.empty(part.shape).exponential_().log()).softmax(1) for part in z.split([3, 2], dim=1)], 1
    )
    (expected,) = torch.autograd.grad((soft * weights).sum(), gate.out.bias)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_strides_above_the_number_of_frames_are_not_offered(kind, training):
    gate = deciding(make_gate(kind), [0.1, 0.2, 5.0, 0.1, 5.0]).train(training)
    assert gate(make_clip(64, 3, 4, 4, 4))[:, 2].any(), "the test below could not fail"
    decision = gate(make_clip(64, 3, 3, 4, 4))
    assert not decision[:, 2].any()
    torch.testing.assert_close(decision.sum(1), torch.full((64,), 2.0))
    if decision.requires_grad:
        decision.square().sum().backward()
        assert gate.out.bias.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_clip_can_be_trained_on(kind):
    gate = make_gate(kind).train()
    statistics = copy.deepcopy(gate.norm.state_dict())
    gate(CLIPS["noise"][:1]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in gate.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in gate.norm.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_clip_is_no_decision(kind, training):
    assert make_gate(kind).train(training)(CLIPS["noise"][:0]).shape == (0, 5)


def test_evaluation_is_deterministic():
    gate, clips = make_gate(), make_clip(8, 3, 8, 9, 9) + 3 * make_clip(8, 3, 1, 1, 1, seed=1)
    nn.init.normal_(gate.out.weight, std=10)
    assert torch.equal(gate(clips), gate(clips))
    assert len(gate(clips).unique(dim=0)) > 1, "they decide alike: this says little"


def test_an_input_without_a_batch_is_named():
    with pytest.raises(ConvertError, match=r"\(3, 8, 20, 20\).*also for one clip"):
        make_gate()(CLIPS["noise"][0])


def row(gate: Gate) -> list[float]:
    decision: Tensor = gate(CLIPS["noise"])
    assert (decision == decision[0]).all()
    return decision[0].tolist()


def test_fixed_decisions_nest_and_end():
    gate, other = make_gate(), make_gate()
    with fixed_decisions({gate: (1, 1)}):
        assert row(gate) == [0, 1, 0, 0, 1]
        assert row(other) == FULL_ROW
        with fixed_decisions({gate: (2, 0), other: (0, 1)}):
            assert row(gate) == [0, 0, 1, 1, 0]
            assert row(other) == [1, 0, 0, 0, 1]
        assert row(gate) == [0, 1, 0, 0, 1]
        with pytest.raises(KeyError), fixed_decisions({other: (2, 0)}):
            assert row(gate) == [0, 1, 0, 0, 1]
            raise KeyError
        assert row(gate) == [0, 1, 0, 0, 1]
        assert row(other) == FULL_ROW
        assert row(copy.deepcopy(gate)) == FULL_ROW, "a copy is another gate"
    assert row(gate) == FULL_ROW


def test_fixed_decisions_hold_for_one_thread():
    gate, ready, done = make_gate(), threading.Barrier(3), threading.Barrier(3)
    seen = {}

    def decide(name: str, index: tuple[int, int] | None) -> None:
        with fixed_decisions({} if index is None else {gate: index}):
            ready.wait(10)
            seen[name] = row(gate)
            done.wait(10)

    arguments = [("first", (1, 0)), ("second", (2, 1)), ("free", None)]
    threads = [threading.Thread(target=decide, args=args) for args in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"first": [0, 1, 0, 1, 0], "second": [0, 0, 1, 0, 1], "free": FULL_ROW}


def test_copies_and_pickles_decide_the_same():
    gate = make_gate()
    nn.init.normal_(gate.out.weight, std=10)
    for other in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert torch.equal(other(CLIPS["noise"]), gate(CLIPS["noise"]))
        assert other.grid == gate.grid


def test_a_small_thing_that_moves_is_seen():
    """In one cell of 64: the mean over the cells hardly tells it from none, the largest does."""
    gate = make_gate()
    still = make_clip(1, 3, 1, 64, 64).expand(-1, -1, 8, -1, -1).clone()
    moving = still.clone()
    moving[:, :, 1::2, 40:48, 40:48] += 1.0
    # mean, then mean and largest change for each lag
    views = (gate.look(moving) - gate.look(still)).unflatten(1, (3, -1)).chunk(5, dim=2)
    assert views[0].abs().max() < 0.05
    assert views[2].min() > views[1].max() + 2.0
    assert views[3].abs().max() == views[4].abs().max() == 0.0, "back where it was two frames before"


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_what_is_looked_at_is_written_out_here(frames, layout):
    """The mean of the cells, and the mean and largest change of them over one frame and over two, by bins of time."""
    gate, x = make_gate(), make_clip(2, 3, frames, 40, 24).to(memory_format=layout)
    corners = [x[..., a : 36 + a : 5, b : 22 + b : 3] for a in (0, 1) for b in (0, 1)]
    cells = torch.stack(corners).mean(0)
    views = [cells.mean((3, 4))]
    for lag in (1, 2):
        changes = (cells[:, :, lag:] - cells[:, :, :-lag]).abs() if frames > lag else torch.zeros_like(cells[:, :, :1])
        views += [(changes.mean((3, 4)) + 0.01).log(), (changes.amax((3, 4)) + 0.01).log()]
    expected = torch.cat([nn.functional.adaptive_avg_pool1d(view, 4) for view in views], dim=2).flatten(1)
    torch.testing.assert_close(gate.look(x), expected, rtol=1e-4, atol=1e-4)


def test_of_many_channels_the_first_are_looked_at():
    gate = Gate(100, GRID, lambda frames: frames)
    x = make_clip(2, 100, 8, 16, 16)
    others = torch.cat([x[:, :32], make_clip(2, 68, 8, 16, 16, seed=1)], dim=1)
    assert torch.equal(gate.look(x), gate.look(others))
    assert not torch.equal(gate.look(x), gate.look(x.flip(1)))
    assert gate.look(x).shape == (2, 5 * 4 * 32)
    assert gate.macs((8, 16, 16)) == Gate(32, GRID, lambda frames: frames).macs((8, 16, 16))


def test_only_gates_that_cannot_tell_bear_another_order_of_their_channels():
    few, many = (Gate(channels, GRID, lambda frames: frames) for channels in (32, 33))
    assert few.bears_reordering
    assert many.bears_reordering, "it takes the full choice, whatever it sees"
    nn.init.normal_(few.out.weight, std=10)
    nn.init.normal_(many.out.weight, std=10)
    assert few.bears_reordering
    assert not many.bears_reordering


def test_an_open_entry_of_soft_modulation_does_not_bear_another_order():
    """Full weighs most whatever it sees, but how much of the others comes with it depends on that."""
    gate = Gate(40, GRID, lambda frames: frames, kind="soft_modulation")
    assert gate.bears_reordering
    nn.init.constant_(gate.out.weight, 0.01)
    with torch.no_grad():
        gate.out.bias.copy_(torch.tensor([2.0, 1.0, -2.0, 2.0, -2.0]))
    assert not gate.bears_reordering
