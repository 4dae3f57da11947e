import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from vared2_fx import zoo
from vared2_fx.data import ClipConfig, make_loader, scenes
from vared2_fx.zoo import demo_net


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Scenes of a seed that training has not seen: (clips, labels)."""
    listing = scenes.generate_scenes(tmp_path_factory.mktemp("s") / "scenes", videos_per_class=8, seed=9)
    config = ClipConfig.from_spec(zoo.spec("vared2_demo"))
    (batch,) = make_loader(listing, config, batch_size=len(listing))
    return batch["video"], batch["label"]


def right(model, video, label):
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in video.split(8)]) == label


def of_kind(label, *kinds):
    return torch.tensor([scenes.kind_of(scenes.CLASSES[i]) in kinds for i in label])


def test_it_knows_unseen_scenes(clips):
    model = zoo.load("vared2_demo", pretrained=True)
    assert right(model, *clips).float().mean() > 0.9
    torch.manual_seed(0)
    assert right(zoo.load("vared2_demo"), *clips).float().mean() < 0.4  # the control


def test_static_scenes_need_few_frames_and_the_others_many(clips):
    model = zoo.load("vared2_demo", pretrained=True)
    video, label = clips
    held = video[:, :, ::4].repeat_interleave(4, dim=2)
    ok = right(model, held, label)
    assert ok[of_kind(label, "static")].float().mean() > 0.8
    assert ok[of_kind(label, "moving", "shaking", "zooming")].float().mean() < 0.7


def test_the_spec_fits_the_scenes():
    spec = zoo.spec("vared2_demo")
    assert spec.num_classes == len(scenes.CLASSES)
    assert spec.fps == scenes.FPS


def test_the_checkpoint_is_small():
    assert demo_net.WEIGHTS.stat().st_size < 3e6


def test_its_work_lies_in_full_convolutions_at_full_frame_rate():
    model = zoo.load("vared2_demo")
    clip = zoo.spec("vared2_demo").example_inputs()
    full_rate, heavy = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            heavy |= {name} if module.kernel_size == (3, 3, 3) and module.groups == 1 else set()
            module.register_forward_hook(
                lambda module, args, out, name=name: full_rate.add(name) if out.shape[2] == 16 else None
            )
    model(clip)
    macs = FlopCountAnalysis(model, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_module()
    assert 0.3e9 < macs[""] < 0.6e9
    assert sum(macs[name] for name in heavy) > 0.95 * macs[""]
    assert sum(macs[name] for name in full_rate) > 2 / 3 * macs[""]
