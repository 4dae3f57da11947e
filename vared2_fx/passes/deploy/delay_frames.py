"""Frames that a region returns are returned later, where what follows does to each of them the same."""

from torch import fx

from vared2_fx.layers import FrameReturn
from vared2_fx.passes.roles import Role, is_map, roles
from vared2_fx.passes.trace import fork, module_of


def delay_frames(gm: fx.GraphModule) -> fx.GraphModule:
    """Move every `FrameReturn` that holds frames behind what computes each frame by itself.

    R equal frames give R equal frames in activations, norms, convolutions and poolings of one frame, and in what joins
    maps all of which are held so: computed once then, and returned afterwards. Where both a residual branch and its
    shortcut skip frames, their sum does, and so on, often up to the end of the network.

    Needs: shapes.
    Keeps: every output, up to the order in which a convolution adds.
    """
    out = fork(gm)
    known = roles(out)
    for node, role in known.items():
        if (held := _held(out, node, role)) is not None:
            _delay(out, node, held)
    out.delete_all_unused_submodules()
    out.graph.lint()
    out.recompile()
    return out


def _held(out: fx.GraphModule, node: fx.Node, role: Role) -> list[fx.Node] | None:
    """The returns that `node` reads, where it can read what they are given in their place."""
    if not _frame_by_frame(role):
        return None
    # Not the role's own reads: some of those are returns by now.
    maps = [n for n in node.all_input_nodes if is_map(n) and not (role.kind == "scale" and n.meta["shape"][2] == 1)]
    held = [source for source in maps if _is_return(out, source) and module_of(out, source).rebuild.kind == "hold"]
    if not held or len(held) < len(maps):
        return None
    strides = {module_of(out, source).rebuild.stride for source in held}
    frames = {(source.meta["shape"][2], _computed(source).meta["shape"][2]) for source in held}
    others_see = role.in_place and (len(held[0].users) > 1 or len(_computed(held[0]).users) > 1)
    return held if len(strides) == len(frames) == 1 and not others_see else None


def _frame_by_frame(role: Role) -> bool:
    if role.kind in ("conv", "pool"):
        geometry = role.geometry
        return geometry is not None and (geometry.kernel_size[0], geometry.stride[0], geometry.padding[0]) == (1, 1, 0)
    return role.kind in ("pointwise", "norm", "join", "scale", "concat")


def _delay(out: fx.GraphModule, node: fx.Node, held: list[fx.Node]) -> None:
    """Let `node` read what `held` are given, and return its frames."""
    first, name = held[0], f"{node.name}_frame_return"
    back = module_of(out, first)
    out.add_submodule(name, FrameReturn(back.rebuild, back.geometry))
    with out.graph.inserting_after(node):
        later = out.graph.call_module(name, (node, first.args[1]))
    later.meta.update({key: node.meta[key] for key in ("shape", "dtype") if key in node.meta})
    node.replace_all_uses_with(later, delete_user_cb=lambda user: user is not later)
    for source in held:
        node.replace_input_with(source, _computed(source))
    n, c, _, h, w = node.meta["shape"]
    node.meta["shape"] = (n, c, _computed(first).meta["shape"][2], h, w)
    for source in held:
        if not source.users:
            out.graph.erase_node(source)


def _computed(node: fx.Node) -> fx.Node:
    computed = node.args[0]
    assert isinstance(computed, fx.Node)
    return computed


def _is_return(out: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module_of(out, node), FrameReturn)
