"""Fine-tuning on a task small enough for seconds: is the second half of the clip the same as the first?"""

import json
import os

import pytest
import torch
from small import bright_or_dark, config, loaders, small_net
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import vared2_fx as vr
from vared2_fx.errors import CheckpointError, ConvertError, DataError, TrainError
from vared2_fx.layers import DynamicRegion
from vared2_fx.train.history import EpochLog, best_of, rank
from vared2_fx.train.objective import Objective
from vared2_fx.train.optimizer import make_optimizer, parameter_groups


@pytest.mark.parametrize("gate", ["softmax", "gumbel", "soft_modulation"])
def test_macs_come_down_and_the_task_is_learned(gate):
    dynamic = vr.convert(small_net(), config=vr.ConvertConfig(gate=gate, min_macs_share=0.0))
    result = vr.finetune(dynamic, *loaders(160), config(epochs=8, lr=1e-2))
    assert result.history[0].share > 1.0  # full, and the gates' own cost on top
    assert result.evaluation.share < 0.75
    assert result.evaluation.accuracy > 0.9


def test_without_pressure_nothing_is_saved():  # the control
    dynamic = vr.convert(small_net(), config=vr.ConvertConfig(gate="soft_modulation"))
    result = vr.finetune(dynamic, *loaders(), config(epochs=1, efficiency_weight=0.0, gate_lr=0.0))
    assert result.evaluation.share > 1.0


def test_the_temperature_falls_and_the_efficiency_loss_comes_in(monkeypatch):
    """Four epochs of four steps; λ rises over half of them."""
    temperatures, weights, weight_of = [], [], Objective._efficiency_weight

    def noted(objective, step):
        temperatures.append({float(gate.temperature) for gate in objective._gates})
        weights.append(weight_of(objective, step))
        return weights[-1]

    monkeypatch.setattr(Objective, "_efficiency_weight", noted)
    changes = {"temperature": (2.0, 0.5), "efficiency_warmup": 0.5, "efficiency_weight": 3.0}
    vr.finetune(vr.convert(small_net()), *loaders(), config(**changes))
    assert weights == pytest.approx([3.0 * min(1.0, step / 8) for step in range(16)])
    assert [len(some) for some in temperatures] == [1] * 16  # all gates alike
    assert [some.pop() for some in temperatures] == pytest.approx([2.0 * 0.25 ** (step / 15) for step in range(16)])


@pytest.mark.parametrize("frozen", [True, False])
def test_norms_follow_the_clips_unless_they_are_frozen(frozen):
    dynamic = vr.convert(small_net())
    before = {name: value.clone() for name, value in dynamic.named_buffers() if "running_mean" in name}
    before = {name: value for name, value in before.items() if "gate" not in name}
    assert len(before) == 2
    vr.finetune(dynamic, *loaders(), config(epochs=1, freeze_norms=frozen, efficiency_weight=0.0))
    assert all(torch.equal(value, dynamic.get_buffer(name)) == frozen for name, value in before.items())


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        dynamic = vr.convert(small_net())
        vr.finetune(dynamic, *loaders(), config(epochs=2))
        states.append(dynamic.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_network_has_the_best_epochs_weights(tmp_path):
    dynamic = vr.convert(small_net())
    result = vr.finetune(dynamic, *loaders(), config(out=str(tmp_path)))
    best = best_of(result.history)
    assert best.epoch == result.best_epoch
    assert vr.evaluate(dynamic, loaders()[1]).share == pytest.approx(best.share)
    saved = vr.load(tmp_path / "best", base=small_net())
    assert all(torch.equal(saved.state_dict()[k], v) for k, v in dynamic.state_dict().items())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert not dynamic.training


@pytest.mark.parametrize(("error", "epoch"), [(0.0, 1), (0.05, 2), (0.3, 4)])
def test_the_best_epoch_is_the_last_within_the_standard_error(error, epoch):
    values = dict.fromkeys(("train_loss", "train_accuracy", "train_share", "accuracy", "share"), 0.0)
    values |= dict.fromkeys(("min_share", "max_share", "seconds"), 0.0)
    history = [
        EpochLog(epoch=number, objective=objective, objective_error=error, **values)
        for number, objective in enumerate((1.0, 0.4, 0.44, 0.5, 0.6, 0.9))
    ]
    assert best_of(history).epoch == epoch
    assert best_of([*history, EpochLog(epoch=6, objective=0.4, **values)]).epoch == 6, "of equals the later"


def test_the_objectives_standard_error():
    result = vr.finetune(vr.convert(small_net()), *loaders(), config(epochs=1, efficiency_weight=0.0))
    wrong = 1.0 - result.history[1].accuracy
    num_clips = len(loaders()[1].dataset)
    assert 0 < wrong < 1
    assert result.history[1].objective == pytest.approx(wrong)
    assert result.history[1].objective_error == pytest.approx((wrong * (1 - wrong) / (num_clips - 1)) ** 0.5)


def test_patience_ends_a_run_that_gets_worse():
    train, val = loaders(160)
    wrong = [(clips, 1 - labels) for clips, labels in val]
    worse = {"lr": 1e-2, "gate_lr": 0.0, "efficiency_weight": 0.0}
    result = vr.finetune(vr.convert(small_net()), train, wrong, config(epochs=9, patience=2, **worse))
    assert len(result.history) == 1 + min(result.history, key=rank).epoch + 2 < 10
    patient = vr.finetune(vr.convert(small_net()), train, wrong, config(epochs=4, **worse))
    assert len(patient.history) == 5


class StopsAfter:
    """A loader that is interrupted in the middle of an epoch, as a killed run is."""

    def __init__(self, loader: DataLoader, batches: int) -> None:
        self.loader, self.left = loader, batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)


def test_resume_ends_where_the_uninterrupted_run_does(tmp_path):
    def start():
        torch.manual_seed(7)
        train, val = DataLoader(bright_or_dark(64, 1), batch_size=16), loaders()[1]
        return vr.convert(small_net()), train, val

    whole, train, val = start()
    expected = vr.finetune(whole, train, val, config())
    broken, train, val = start()
    with pytest.raises(KeyboardInterrupt):
        vr.finetune(broken, StopsAfter(train, 10), val, config(out=str(tmp_path)))
    resumed, train, val = start()
    result = vr.finetune(resumed, train, val, config(out=str(tmp_path), resume=True))
    assert [e.objective for e in result.history] == [e.objective for e in expected.history]
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in resumed.state_dict().items())


def drawing(one: bool) -> DataLoader:
    """Clips in an order of the loader's own generator, or of its sampler's; neither is torch's."""
    clips, generator = bright_or_dark(64, 1), torch.Generator().manual_seed(3)
    if one:
        return DataLoader(clips, batch_size=16, shuffle=True, generator=generator)
    own = torch.Generator().manual_seed(4)
    return DataLoader(clips, batch_size=16, sampler=RandomSampler(clips, generator=own), generator=generator)


@pytest.mark.parametrize("one", [True, False], ids=["one generator", "the sampler's is another"])
def test_resume_draws_on_from_the_loaders_generators(tmp_path, one):
    val, again = loaders()[1], config(out=str(tmp_path), resume=True)
    whole = vr.convert(small_net())
    vr.finetune(whole, drawing(one), val, config())
    with pytest.raises(KeyboardInterrupt):
        vr.finetune(vr.convert(small_net()), StopsAfter(drawing(one), 10), val, again)
    resumed, left = vr.convert(small_net()), drawing(one)
    vr.finetune(resumed, left, val, again)
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in resumed.state_dict().items())
    with pytest.raises(CheckpointError, match=rf"of generators \({2 - one}\) than these loaders have \(0\)"):
        vr.finetune(vr.convert(small_net()), in_batches(16), val, again)


def test_resume_refuses_another_config_and_damaged_files(tmp_path):
    vr.finetune(vr.convert(small_net()), *loaders(), config(epochs=1, out=str(tmp_path)))
    with pytest.raises(CheckpointError, match="another lr"):
        vr.finetune(vr.convert(small_net()), *loaders(), config(epochs=1, lr=1.0, out=str(tmp_path), resume=True))
    (tmp_path / "last" / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        vr.finetune(vr.convert(small_net()), *loaders(), config(epochs=1, out=str(tmp_path), resume=True))


def in_batches(size, clips=64):
    return DataLoader(bright_or_dark(clips, 1), batch_size=size)


def test_resume_refuses_other_clips_and_processes(tmp_path, untouched):
    train, val = in_batches(16), loaders()[1]
    vr.finetune(vr.convert(small_net()), train, val, config(epochs=1, out=str(tmp_path)))
    again, dynamic = config(epochs=1, out=str(tmp_path), resume=True), vr.convert(small_net())
    with untouched(dynamic), pytest.raises(CheckpointError, match=r"number of steps \(4\) than .* give \(3\)"):
        vr.finetune(dynamic, in_batches(16, 48), val, again)
    progress = json.loads((tmp_path / "last/progress.json").read_text())
    (tmp_path / "last/progress.json").write_text(json.dumps(progress | {"num_processes": 2}))
    with untouched(dynamic), pytest.raises(CheckpointError, match=r"processes \(2\) than this one \(1\)"):
        vr.finetune(dynamic, train, val, again)


def test_a_second_kill_while_saving_loses_nothing(tmp_path, monkeypatch):
    """The first was between two renames, the second in between again: last.old stays until there is another."""
    train, val = in_batches(16), loaders()[1]
    with pytest.raises(KeyboardInterrupt):
        vr.finetune(vr.convert(small_net()), StopsAfter(train, 6), val, config(out=str(tmp_path)))
    (tmp_path / "last").rename(tmp_path / "last.old")

    rename = os.replace

    def killed(source, target):
        if target == tmp_path / "last":
            raise KeyboardInterrupt
        rename(source, target)

    resume = config(out=str(tmp_path), resume=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        vr.finetune(vr.convert(small_net()), train, val, resume)
    assert (tmp_path / "last.old/progress.json").exists()
    assert len(vr.finetune(vr.convert(small_net()), train, val, resume).history) == 5


def test_every_parameter_is_in_one_group():
    dynamic = vr.convert(small_net())
    groups = parameter_groups(dynamic, vr.FinetuneConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in dynamic.parameters())
    assert {group["lr"] for group in groups} == {1e-4, 2e-2}
    regions = [module for module in dynamic.modules() if isinstance(module, DynamicRegion)]
    gates = {id(p) for region in regions for p in region.gate.parameters()}
    rebuilds = {id(p) for region in regions for part in region.added()[1:] for p in part.parameters()}
    assert rebuilds
    for group in groups:
        found = {id(p) for p in group["params"]}
        assert found == gates if group["lr"] == 2e-2 else not found & gates
        assert not (group["weight_decay"] and found & rebuilds)


def test_what_calibration_found_is_not_thrown_off_by_a_step():
    """Adam moves each value by about its rate in the first step, however small the gradient; gates are to move."""
    dynamic = vr.convert(small_net())
    region = next(module for module in dynamic.modules() if isinstance(module, DynamicRegion))
    cheap = [*region.channel_rebuilds.parameters(), *region.frame_rebuilds.parameters()]
    values = [*cheap, region.gate.out.bias]
    before = [value.detach().clone() for value in values]
    optimizer = make_optimizer(dynamic, config(lr=1e-4, gate_lr=1e-2))
    output, _ = vr.with_decisions(dynamic).train()(bright_or_dark(16, 1).tensors[0])
    output.square().sum().backward()
    optimizer.step()
    *moved, gate = [float((new.detach() - old).abs().max()) for new, old in zip(values, before, strict=True)]
    assert 0 < max(moved) < 2e-4
    assert gate > 5e-3


def test_bf16_trains_after_fp32_in_one_process():
    vr.finetune(vr.convert(small_net()), *loaders(), config(epochs=1))
    result = vr.finetune(vr.convert(small_net()), *loaders(), config(epochs=1, mixed_precision="bf16"))
    assert len(result.history) == 2


def bad_loader(clips: torch.Tensor, labels: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(clips, labels), batch_size=4)


def test_user_mistakes_are_named(tmp_path):
    dynamic, (train, val) = vr.convert(small_net()), loaders()
    clips = torch.randn(4, 1, 8, 8, 8)
    with pytest.raises(DataError, match="label 7, but the network knows 2 classes"):
        vr.finetune(dynamic, bad_loader(clips, torch.full((4,), 7)), val, config())
    with pytest.raises(DataError, match="training loader is empty"):
        vr.finetune(dynamic, [], val, config())
    with pytest.raises(DataError, match="no clips"):
        vr.finetune(dynamic, train, [], config())
    with pytest.raises(DataError, match="integer tensor"):
        vr.finetune(dynamic, bad_loader(clips, torch.rand(4)), val, config())
    with pytest.raises(DataError, match="a batch holds"):
        vr.evaluate(dynamic, [{"clips": clips}])
    with pytest.raises(TrainError, match="Lower lr"):
        vr.finetune(dynamic, bad_loader(clips * float("inf"), torch.zeros(4, dtype=torch.long)), val, config())
    with pytest.raises(TrainError, match="Did you mean adamw"):
        vr.finetune(dynamic, train, val, config(optimizer="adamww"))
    with pytest.raises(ConvertError, match="not a converted network"):
        vr.finetune(small_net(), train, val, config())


@pytest.mark.parametrize("target", ["2%", 0.02])
def test_a_target_out_of_reach_is_refused_before_the_first_step(target, untouched, tmp_path):
    dynamic, (train, val) = vr.convert(small_net()), loaders()
    with (
        untouched(dynamic),
        pytest.raises(ConvertError, match=r"finetune: a target of 2.0 % .* reaches from \d+\.\d %"),
    ):
        vr.finetune(dynamic, train, val, config(target_macs=target, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_what_is_reachable_is_asked_at_the_size_of_the_clips():
    """Frames that the plan's guess knows nothing of: with one frame nothing is left to skip."""
    dynamic = vr.convert(small_net(), config=vr.ConvertConfig(channel_shares=(1.0,), min_macs_share=0.0))
    clips, labels = torch.randn(4, 1, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    one_frame = DataLoader(TensorDataset(clips, labels), batch_size=4)
    with pytest.raises(ConvertError, match=r"reaches from 1\d\d\.\d % \(cheapest policy\) to 1"):
        vr.finetune(dynamic, one_frame, one_frame, config(target_macs="80%"))
    assert vr.finetune(dynamic, *loaders(), config(epochs=1, target_macs="80%")).history


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"accumulate": 0},
        {"patience": -1},
        {"lr": -1.0},
        {"target_macs": 60.0},
        {"efficiency_warmup": 2.0},
        {"temperature": (0.0, 1.0)},
        {"resume": True},
        {"mixed_precision": "fp8"},
        {"label_smoothing": 1.0},
        {"own_share": 1.0},
        {"gate_loss_weight": 0.0},
        {"target_macs": 0.6, "efficiency_weight": 0.0},
    ],
)
def test_impossible_configs_are_refused(changes):
    with pytest.raises(ConvertError, match="FinetuneConfig"):
        vr.FinetuneConfig(**changes)


def test_a_target_is_met_by_the_price_of_multiply_adds_in_the_joint_schedule_only():
    with pytest.raises(ConvertError, match=r"efficiency_weight=0 .* target_macs=0.6 .* give it a weight above 0"):
        vr.FinetuneConfig(target_macs="60%", efficiency_weight=0)
    assert vr.FinetuneConfig(schedule="variants_first", target_macs="60%", efficiency_weight=0).target == 0.6
