"""What a deployed network takes and gives: nesting, sizes that are free, and what does not fit."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from networks import Net, make_clip

import vared2_fx as vr
from vared2_fx.errors import DeployError
from vared2_fx.passes.check import largest_difference

CLIP = make_clip(1, 3, 8, 16, 16)
NEAR = 1e-4
"""Of the largest output; engines add up in other orders."""


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((make_clip(1, 3, 8, 16, 20),), "its input has shape 1×3×8×16×20; it takes 1…×3×.*×16×16. For another size"),
        ((make_clip(1, 4, 8, 16, 16),), "its input has shape 1×4×8×16×16"),
        ((make_clip(3, 8, 16, 16),), "its input has shape 3×8×16×16"),
        ((CLIP.double(),), r"its input is float64; it has to be float32 \(`x.to\(torch.float32\)`\)"),
        ((CLIP, CLIP), "it was given 2 arguments"),
        (([CLIP],), "it takes 1….* it was given 1 argument"),
        ((), "it was given 0 arguments"),
        (("clip",), "it was given a str"),
        ((CLIP.to("meta"),), "its input is on meta; deployed networks run on the processor"),
    ],
)
def test_inputs_that_do_not_fit(engine, made, inputs, message):
    with pytest.raises(DeployError, match=f"deployed TinyNet: .*{message}"):
        made(engine)(*inputs)


class Pathways(Net):
    """Takes a list as SlowFast does, and writes into it; answers with a dict."""

    def forward(self, x):
        slow, fast = x
        x[0] = self.a(slow)
        both = self.b(x[0].relu()) + self.b(self.a(fast).relu()).mean(2, keepdim=True)
        return {"logits": self.head(both.mean((2, 3, 4))), "maps": [both]}


def test_lists_in_and_out(quick_engine):
    torch.manual_seed(0)
    model, inputs = Pathways().eval(), [make_clip(1, 3, 2, 8, 8), make_clip(1, 3, 8, 8, 8, seed=1)]
    deployed = vr.deploy(model, quick_engine, example_inputs=inputs)
    given = [torch.cat([x, -x]) for x in inputs]
    expected, answer = model(list(given)), deployed(given)
    assert answer.keys() == {"logits", "maps"}
    assert isinstance(answer["maps"], list)
    assert largest_difference(expected["logits"], answer["logits"]) <= NEAR
    assert largest_difference(expected["maps"][0], answer["maps"][0]) <= NEAR
    assert given[0].shape == (2, 3, 2, 8, 8)
    with pytest.raises(DeployError, match="where others have 2, it has 1"):
        deployed([given[0], inputs[1]])


class Streams(Net):
    """Takes a dict, and answers with logits before the map that they are of."""

    def forward(self, x):
        y = self.b(self.a(x["rgb"]).relu()) + self.a(x["flow"]).mean(2, keepdim=True)
        return self.head(y.mean((2, 3, 4))), y


def test_a_dict_is_told_by_its_keys(quick_engine):
    torch.manual_seed(0)
    model, rgb, flow = Streams().eval(), CLIP, make_clip(1, 3, 8, 16, 16, seed=1)
    deployed = vr.deploy(model, quick_engine, example_inputs={"rgb": rgb, "flow": flow})
    expected, _ = model({"rgb": rgb, "flow": flow})
    for given in ({"rgb": rgb, "flow": flow}, {"flow": flow, "rgb": rgb}):
        assert largest_difference(expected, deployed(given)[0]) <= NEAR


def test_a_map_that_is_given_out_beside_the_logits():
    class Both(Net):
        def forward(self, x):
            y = self.b(self.a(x).relu())
            return self.head(y.mean((2, 3, 4))), y

    torch.manual_seed(0)
    dynamic = vr.convert(Both().eval(), CLIP, vr.ConvertConfig(granularity="block", min_macs_share=0.0))
    static = vr.specialize(dynamic, {"*": (2, 1.0)})
    for expected, found in zip(static(CLIP), vr.deploy(static, example_inputs=CLIP)(CLIP), strict=True):
        assert largest_difference(expected, found) <= NEAR


@pytest.mark.parametrize("answer", [OrderedDict, lambda pairs: {number: y for number, (_, y) in enumerate(pairs)}])
def test_what_lists_and_dicts_cannot_hold_is_refused(answer):
    class Other(Net):
        def forward(self, x):
            return answer([("logits", super().forward(x)), ("map", self.a(x))])

    with pytest.raises(DeployError, match=r"the network gives (OrderedDict|dict); tensors can be, and lists, tuples"):
        vr.deploy(Other().eval(), example_inputs=CLIP)


class Even(Net):
    """Pads an odd number of frames, so that its graph depends on that number."""

    def forward(self, x):
        if x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))
        return super().forward(x)


@pytest.mark.parametrize("num_frames", [8, 9])
def test_frames_are_fixed_where_the_graph_depends_on_their_number(quick_engine, num_frames):
    model, clips = Even().eval(), make_clip(2, 3, num_frames, 16, 16)
    deployed = vr.deploy(model, quick_engine, example_inputs=clips)
    assert largest_difference(model(clips[:1]), deployed(clips[:1])) <= NEAR
    with pytest.raises(
        DeployError, match=f"its input has shape 1×3×{num_frames + 1}×16×16; it takes 1…×3×{num_frames}×"
    ):
        deployed(make_clip(1, 3, num_frames + 1, 16, 16))
