"""Gates that decide nothing, told while there is time to do something about it [ours]."""

from vared2_fx.tables import percent
from vared2_fx.train.evaluate import Evaluation

ENOUGH_CLIPS = 8
"""Fewer that get the same choice say nothing about a gate."""
NEARLY_ALL = 0.99
"""Share of the clips from which on a choice counts as taken by all."""
NO_SPREAD = 0.01
"""Standard deviation of the multiply-adds per clip, of the original's, below which they do not depend on the clip."""


def collapse_alarms(evaluation: Evaluation) -> tuple[str, ...]:
    """What is wrong with the decisions in an evaluation, the whole network first, then region by region.

    - The whole network spends the same on every clip, though not everything: a static network would do as well.
    - A gate takes one choice for at least 99 % of the clips.
    - A gate never takes some of its choices.

    A gate that computes everything for all clips, as right after conversion, is named too: it saves nothing. Below 8
    clips nothing is said.

    Args:
        evaluation: from `evaluate`.

    Returns:
        A sentence for each; empty where gates decide, or where there are none.
    """
    if len(evaluation.clips) < ENOUGH_CLIPS:
        return ()
    found = []
    if evaluation.layers and evaluation.spread < NO_SPREAD:
        found.append(
            f"all clips take {percent(evaluation.share)} of the multiply-adds (standard deviation "
            f"{percent(evaluation.spread)}): decisions do not depend on the clip, and a static choice would save the "
            "gates. Raise gate_loss_weight or gate_lr, or take schedule='variants_first'."
        )
    for path, layer in evaluation.layers.items():
        counts = {choice: clips for choice, clips in layer.choices.items() if clips}
        total, most = sum(counts.values()), max(counts, key=lambda choice: counts[choice], default=None)
        if most is None:
            found.append(f"{path} ran for no clip: it is in a branch that none took.")
        elif counts[most] >= NEARLY_ALL * total:
            found.append(f"{path} takes {most} for {counts[most]} of {total} clips: its gate decides nothing.")
        elif unused := [str(choice) for choice, clips in layer.choices.items() if not clips]:
            found.append(f"{path} never takes {' or '.join(unused)}.")
    return tuple(found)
