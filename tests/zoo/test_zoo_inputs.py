"""What networks take that take more than one clip, or less: lists of pathways, boxes, images."""

import dataclasses

import pytest
import torch

from vared2_fx import zoo
from vared2_fx.errors import ZooError

PLAIN = zoo.spec("x3d_xs")
SLOWFAST = dataclasses.replace(zoo.spec("slowfast_r50"), crop=4, short_side=4)  # small clips; the same frames
DETECTION = dataclasses.replace(zoo.spec("slowfast_r50_detection"), crop=40, short_side=40)
STILL = zoo.spec("mvit_base_16")


def numbered(num_frames: int, batch: int = 2) -> torch.Tensor:
    """Clips whose pixels are the number of their frame."""
    return torch.arange(num_frames).float()[:, None, None].expand(batch, 3, num_frames, 4, 4).contiguous()


def frames_of(clips: torch.Tensor) -> list[int]:
    assert (clips.amax((0, 1, 3, 4)) == clips.amin((0, 1, 3, 4))).all()
    return clips[0, 0, :, 0, 0].int().tolist()


def test_one_clip_is_passed_through():
    clips = numbered(4)
    assert PLAIN.pack(clips) is clips
    assert isinstance(PLAIN.example_inputs(), torch.Tensor)
    assert PLAIN.pathways == ()
    assert not PLAIN.boxes
    assert not PLAIN.still


def test_pathways_take_the_frames_that_pytorchvideo_takes():
    clips = numbered(32)
    slow, fast = SLOWFAST.pack(clips)
    # pytorchvideo's PackPathway (tutorials): index_select with torch.linspace(0, T - 1, T // alpha).long()
    assert frames_of(slow) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert fast is clips
    assert frames_of(SLOWFAST.pack(numbered(16))[0]) == [0, 5, 10, 15]  # the same share of another length
    assert frames_of(SLOWFAST.pack(numbered(3))[0]) == [0]


def test_each_pack_is_a_list_of_its_own():
    clips = numbered(32)
    first, second = SLOWFAST.pack(clips), SLOWFAST.pack(clips)
    first[0] = first[1] = None  # what the network does to it
    assert all(tensor is not None for tensor in second)


def test_slowfast_writes_into_the_list_it_is_called_with():
    # Not ours to mend, but said in the zoo: should it end, the text there has to.
    model = zoo.load("slowfast_r50", num_classes=2).to("meta")
    inputs = zoo.spec("slowfast_r50").example_inputs()
    inputs = [tensor.to("meta") for tensor in inputs]
    with torch.no_grad():
        model(inputs)
        assert [tensor.shape[1] for tensor in inputs] == [64, 8]  # the stems' channels
        with pytest.raises(RuntimeError, match="channel"):
            model(inputs)


def test_example_inputs_of_pathways_are_one_clip_twice():
    slow, fast = SLOWFAST.example_inputs(batch=2)
    assert (slow.shape, fast.shape) == ((2, 3, 8, 4, 4), (2, 3, 32, 4, 4))
    assert torch.equal(slow[:, :, 0], fast[:, :, 0])
    assert torch.equal(slow[:, :, -1], fast[:, :, -1])
    (packed,) = SLOWFAST.example_args()
    assert isinstance(packed, list), "one argument, not two"


def test_example_boxes_lie_within_the_crop_two_per_clip():
    (slow, fast), boxes = DETECTION.example_inputs(batch=3)
    assert len(slow) == len(fast) == 3
    assert boxes.dtype == torch.float32
    assert boxes[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    x1, y1, x2, y2 = boxes[:, 1:].unbind(1)
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x1 < x2).all()
    assert (y1 < y2).all()
    assert max(x2.max(), y2.max()) <= DETECTION.crop


def test_a_still_is_the_first_frame():
    clips = numbered(3)
    assert torch.equal(STILL.pack(clips), clips[:, :, 0])
    assert STILL.example_inputs(batch=2).shape == (2, 3, 224, 224)


@pytest.mark.parametrize(
    ("spec", "change", "text"),
    [
        (SLOWFAST, {"pathways": (8, 16)}, r"pathways=\(8, 16\); .* the last all 32"),
        (SLOWFAST, {"pathways": (64, 32)}, r"pathways=\(64, 32\)"),
        (SLOWFAST, {"pathways": (0, 32)}, "at least 1 frame"),
        (STILL, {"frames": 2}, "still=True goes with frames=1"),
        (STILL, {"pathways": (1,)}, "no pathways"),
    ],
)
def test_impossible_inputs_are_refused(spec, change, text):
    with pytest.raises(ZooError, match=text):
        dataclasses.replace(spec, **change)
