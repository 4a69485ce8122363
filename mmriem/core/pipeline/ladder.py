"""Several files of one network, of different sizes: whatever does not depend on the size is done once.

The metric is measured once, each weight's problem factored once, the original's statistics taken once. Each file is the
same, byte for byte, as :func:`.compress.compress` makes it for that budget alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import Interrupted, RiemError
from ..execution.memory import release_memory
from ..images.probe import Probe
from .compress import Compressed, complete, prepare, solve
from .correct import Original
from .measure import measure
from .progress import OnProgress
from .settings import Budget, Settings
from .solve_steps import Problems


@dataclass(frozen=True)
class Rung:
    """One size.

    Attributes:
        budget: what was asked for.
        compressed: what is to be written; None in all processes but the first, and where it was refused.
        refused: why no file keeps to the budget; empty where one does.
    """

    budget: Budget
    compressed: Compressed | None
    refused: str = ''


def climb(
    model: nn.Module,
    settings: Settings,
    budgets: Sequence[Budget],
    *,
    probe: Probe | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Iterator[Rung]:
    """A file for each budget, one after the other.

    Args:
        model: any module; it is not changed.
        settings: how; its own budget is not used.
        budgets: of the files.
        probe: images to run the model on.
        on_progress: called with the share of all the work that is done.
        options: the others of :func:`.compress.compress`, which apply to each file.

    Raises:
        RiemError: there is nothing to compress, no budget, or a process is gone. What is wrong with one budget alone is
            in its rung.
    """
    if not budgets:
        raise RiemError('ladder: expected at least one size, found none')
    every = [settings.changed(**vars(budget)) for budget in budgets]
    shares = [(number + (number > 0)) / (len(every) + 1) for number in range(len(every))] + [1.0]
    prepared = prepare(model, every[0], probe=probe, on_progress=_part(on_progress, *shares[:2]), **options)
    metrics = measure(prepared.job, probe, prepared.log, stays=not prepared.job.settings.fit.kind.stepper)
    problems = Problems(prepared.job, metrics, prepared.log) if prepared.job.settings.fit.kind.stepper else None
    original = Original(prepared.job, probe)
    for number, budget in enumerate(budgets):
        if number:
            release_memory()
            part = _part(on_progress, *shares[number : number + 2])
            prepared = prepare(model, every[number], probe=probe, on_progress=part, **options)
        try:
            solution = solve(prepared, metrics, problems and problems.told_to(prepared.log))
            compressed = complete(prepared, metrics, solution, probe, original)
        except Interrupted:
            raise
        except RiemError as error:
            yield Rung(budget, None, str(error))
        else:
            yield Rung(budget, compressed)


def _part(on_progress: OnProgress | None, first: float, last: float) -> OnProgress | None:
    """What tells the progress of a part of the work."""
    return on_progress and (lambda share, name: on_progress(first + (last - first) * share, name))
