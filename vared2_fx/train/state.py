"""A fine-tuning run on disk: everything needed to go on, the best network, and the log."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, fx

from vared2_fx.checkpoint import WEIGHTS_FILE, save
from vared2_fx.config import FinetuneConfig
from vared2_fx.errors import CheckpointError
from vared2_fx.train.processes import of_all_processes

if TYPE_CHECKING:
    from accelerate import Accelerator

_MAY_CHANGE = {"out", "resume", "progress", "tensorboard"}
_MEANING = {
    "num_processes": "had another number of processes{then} than this one{now}; launch as many.",
    "num_steps": "had another number of steps{then} than these clips and batches give{now}; pass the same training "
    "clips in batches of the same size.",
    "num_generators": "had another number of generators{then} than these loaders have{now}; make the loaders as then.",
    "teacher": "learned from other weights. Pass the network as it was converted, not a trained one, or the run's "
    "`original`.",
}
"""What it says where a run cannot be gone on with."""


class RunFolder:
    """`last/` (the run's state after an epoch), `best/` (a network for `load`), `log.jsonl` (a line per epoch).

    `last/` is replaced as a whole: a kill at any moment leaves the state of one epoch or of the one before.
    """

    def __init__(
        self, config: FinetuneConfig, accelerator: "Accelerator", generators: Sequence[torch.Generator] = ()
    ) -> None:
        """Use `config.out`; nothing is written where it is None.

        `generators`: of the loaders, which accelerate does not save beside torch's own.
        """
        self._config, self._accelerator, self._generators = config, accelerator, generators
        self._drawn = f"generators_{accelerator.process_index}.pt"
        self._folder = None if config.out is None else Path(config.out)

    def save_last(self, progress: dict[str, Any]) -> None:
        """Write the state of all that `accelerator` prepared and of the generators, and `progress`, as JSON."""
        if self._folder is None:
            return
        new, last, old = (self._folder / name for name in ("last.new", "last", "last.old"))
        if self._accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(new))
        if self._generators:
            torch.save([generator.get_state() for generator in self._generators], new / self._drawn)
        self._accelerator.wait_for_everyone()  # each process writes a part of it
        if self._accelerator.is_main_process:
            document = {"config": _comparable(self._config), **progress}
            (new / "progress.json").write_text(json.dumps(document))
            if last.exists():  # else the run was killed between the two renames, and last.old is all there is
                shutil.rmtree(old, ignore_errors=True)
                os.replace(last, old)
            os.replace(new, last)
            shutil.rmtree(old, ignore_errors=True)
            lines = [json.dumps(epoch) for epoch in progress["history"]]
            (self._folder / "log.jsonl").write_text("\n".join(lines) + "\n")

    def save_best(self, dynamic: fx.GraphModule) -> None:
        """Write the network as it is now to `best/`."""
        if self._folder is not None and self._accelerator.is_main_process:
            save(dynamic, self._folder / "best")

    def resume(self, **same: int | str | None) -> dict[str, Any] | None:
        """Load the state of `last/` into everything prepared, and into the generators.

        Args:
            same: what `save_last` has to have been given, by its name there; see `_MEANING`.

        Returns:
            What `save_last` was given; None where there is nothing to go on with, or `resume` is off.

        Raises:
            CheckpointError: the run had another config, or other clips, processes or teacher, its files are damaged, or
                processes do not find the same. Nothing is loaded then, unless it is the state itself that is damaged.
        """
        if self._folder is None or not self._config.resume:
            return None
        found = [self._folder / name for name in ("last", "last.old") if (self._folder / name).exists()]
        self._check_same_everywhere(found)
        if not found:
            return None
        try:
            progress: dict[str, Any] = json.loads((found[0] / "progress.json").read_text())
            before = progress.pop("config")
        except (OSError, ValueError, KeyError) as exc:
            raise CheckpointError(f"resume: {found[0]} is damaged ({exc}); start anew without resume.") from exc
        changed = [key for key, value in _comparable(self._config).items() if before.get(key) != value]
        if changed:
            raise CheckpointError(
                f"resume: the run in {self._folder} had another {', '.join(changed)}; "
                "resume with the same config, or start anew in another folder."
            )
        for name, value in same.items():
            if name in progress and progress[name] != value:
                then, now = (f" ({v})" if isinstance(v, int) else "" for v in (progress[name], value))
                raise CheckpointError(f"resume: the run in {self._folder} {_MEANING[name].format(then=then, now=now)}")
        try:
            drawn = torch.load(found[0] / self._drawn) if self._generators else []
            self._accelerator.load_state(str(found[0]))
            for generator, state in zip(self._generators, drawn, strict=True):
                generator.set_state(state)
        except Exception as exc:  # whatever the library meets in damaged files
            raise CheckpointError(f"resume: {found[0]} does not load ({exc}); start anew without resume.") from exc
        return progress

    def _check_same_everywhere(self, found: list[Path]) -> None:
        """Refuse, in all processes, to go on from different epochs: they would wait for each other in vain."""
        first, *others = of_all_processes(_state_in(found))
        for number, other in enumerate(others, start=1):
            if other != first:
                raise CheckpointError(
                    f"resume: in {self._folder} process 0 finds {first}, process {number} {other}; let `out` be one "
                    "folder that all machines share."
                )

    def best_weights(self) -> dict[str, Tensor]:
        """The weights in `best/`."""
        assert self._folder is not None
        return load_file(self._folder / "best" / WEIGHTS_FILE)


def _state_in(found: list[Path]) -> str:
    """What there is to go on from, in words, which are the same for the same run after the same epoch only."""
    if not found:
        return "nothing"
    try:
        text = (found[0] / "progress.json").read_bytes()
        epoch = json.loads(text)["history"][-1]["epoch"]
    except (OSError, ValueError, LookupError):
        return "a damaged run"
    return f"a run after epoch {epoch} (checksum {hashlib.blake2b(text, digest_size=8).hexdigest()})"


def _comparable(config: FinetuneConfig) -> dict[str, Any]:
    values = {key: value for key, value in asdict(config).items() if key not in _MAY_CHANGE}
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]  # as it will be read back: tuples are lists
