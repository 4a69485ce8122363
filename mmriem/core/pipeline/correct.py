"""The stage that corrects: norms and biases that suit the decoded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..correction.recalibration import OBSERVER, observe, recalibrate
from ..correction.tuning import Tuned, tune
from ..execution.memory import release_memory
from ..execution.tasks import one_thread
from ..file.dense import store
from ..images.probe import Probe
from .encoded_weight import EncodedWeights
from .job import Job
from .progress import WorkLog


@dataclass(frozen=True, eq=False)
class Corrected:
    """The original state dict with corrected norms and biases, and how training went, if any took place."""

    state_dict: dict[str, Tensor]
    tuned: Tuned | None = None


class Original:
    """What the original network does beside a compressed one, and what it told: the same for files of any size.

    Args:
        job: the compression.
        probe: its images.
    """

    def __init__(self, job: Job, probe: Probe | None) -> None:
        self._job, self._probe = job, probe
        self._told: list[bytes] = []

    def tell(self) -> None:
        """What another process than the first does meanwhile: that of rank ``OBSERVER`` runs the original."""
        if self._probe is not None and self._job.recalibrates and self._job.executor.workers.rank == OBSERVER:
            release_memory()
            with one_thread():
                observe(self._job.model_on_device(), self._probe, self._job.executor)

    def recalibrate(self, compressed: nn.Module, reference: nn.Module) -> None:
        """Set norms and biases so that activations have the statistics of the original's."""
        if self._probe is None:
            raise ValueError('there are no images to recalibrate with')
        recalibrate(compressed, reference, self._probe, self._job.executor, self._told)


def correct(job: Job, weights: EncodedWeights, probe: Probe | None, log: WorkLog, original: Original) -> Corrected:
    """Recalibrate norms and biases, then train them, as far as the job asks for it."""
    if probe is None or not (job.recalibrates or job.trained):
        return Corrected(job.state_dict)
    release_memory()
    compressed, reference = job.model_on_device(), job.model_on_device()
    _fill(job, compressed, weights)
    tuned = None
    with one_thread():
        if job.recalibrates:
            with log.within('recalibrate', 'norms and biases'):
                original.recalibrate(compressed, reference)
        if job.trained:
            with log.within('tune', 'norms and biases') as advance:
                tuned = _tune(job, compressed, reference, probe, advance)
    return Corrected(_merged(job, compressed), tuned)


@torch.no_grad()
def _fill(job: Job, compressed: nn.Module, weights: EncodedWeights) -> None:
    parameters = dict(compressed.named_parameters(remove_duplicate=False))
    for view in job.views:
        stored = weights[view.name].record(view) or store(view.name, job.state_dict[view.name])
        parameters[view.name].copy_(stored.decode())


def _tune(
    job: Job, compressed: nn.Module, reference: nn.Module, probe: Probe, on_progress: Callable[[float], None]
) -> Tuned:
    steps = job.settings.corrections.tuning or 0
    return tune(
        compressed,
        reference,
        [view.name.rpartition('.')[0] for view in job.views],
        job.trained,
        probe.others(steps),
        steps,
        threads=job.executor.threads,
        on_progress=on_progress,
    )


def _merged(job: Job, compressed: nn.Module) -> dict[str, Tensor]:
    """What the module holds besides the weights, which are the original ones."""
    weights = {key for view in job.views for key in (view.name, *view.aliases)}
    changed: dict[str, Tensor] = {}
    shared: dict[tuple[int, torch.Size], Tensor] = {}
    for key, tensor in compressed.state_dict().items():
        original = job.state_dict[key]
        if key not in weights and not torch.equal(tensor.cpu(), original):
            place = original.data_ptr(), original.shape
            changed[key] = shared.setdefault(place, _storable(key, tensor.cpu(), original))
    return {**job.state_dict, **changed}


def _storable(key: str, tensor: Tensor, original: Tensor) -> Tensor:
    """The tensor such that it takes no more bytes than the original: in fp16 where that was exact enough."""
    if not tensor.is_floating_point() or store(key, original).layout.storage != 'half':
        return tensor
    if not tensor.half().any():
        return torch.zeros_like(tensor)  # not of either sign: a constant takes no bytes
    limit = torch.finfo(torch.float16).max
    return tensor.clamp(-limit, limit).half().to(tensor.dtype)
