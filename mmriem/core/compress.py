"""The pipeline: find the weights of a module, allocate the budget, fit each weight, gather archive and report."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .allocation import CLOSE_ENOUGH, Solutions, relative_steps, search, solve_all
from .budget import DENSE_BITS, RECORD_BITS, Plan, allocate, target_bits
from .container import Archive, WeightRecord
from .dense import store
from .derived import derive
from .errors import RiemError
from .lattice import Lattice, Problem
from .manifest import Source
from .parallel import Task, run_all
from .probe import Probe
from .pullback import Metric, collect
from .recalibration import mended_keys, recalibrate
from .representation import Representation, get_representation, representation_names
from .surgery import DEFAULT_MIN_NUMEL, WeightView, every_weight, find_vectors, find_weights
from .vectors import LEAST_PRECISION, precision_for

AUTO = 'auto'
"""The representation of each weight that does least damage for its bytes."""
DEFAULT_ERRORS = (0.03, 0.09)
"""Predicted relative error of the outputs where no budget is given. The file is as small as the first one allows; where
that is more than ``DEFAULT_SIZE`` of the fp32 weights, it has that size, unless the second one is exceeded."""
DEFAULT_SIZE = 1 / 17
DEFAULT_RATIO = 0.19
"""The paper's."""

OnProgress = Callable[[float, str], None]
"""Called with the share of the work done, 0 to 1, and the name of the weight that it concerns."""


@dataclass(frozen=True)
class Settings:
    """How to compress.

    Attributes:
        representation: name of the representation, or ``auto``.
        ratio: size of the file over the fp32 state dict; or
        bits: bits of the file for each represented weight; or
        size: bytes of the file; or
        tolerance: predicted relative error of the network's outputs (``lattice`` and ``auto`` alone, and only where
            images can be run). Where none of the four is given, these two go by ``DEFAULT_ERRORS``, and without images,
            as the others do, by ``DEFAULT_RATIO``.
        include, exclude: glob patterns on state-dict keys.
        min_numel: weights with fewer elements stay dense.
        state_bits: bits of a quantised state; 0 lets each weight's budget decide. The paper has 8.
        shifts: relative vectors of ``sigmoid``; the paper has 6.
        seeds: random starts of a fit, culled early.
        seed: the first of them.
        effort: scales the number of optimisation steps.
        recalibration: whether norms and biases are mended afterwards; that needs images, too.
    """

    representation: str = 'lattice'
    ratio: float | None = None
    bits: float | None = None
    size: int | None = None
    tolerance: float | None = None
    include: tuple[str, ...] = ('*',)
    exclude: tuple[str, ...] = ()
    min_numel: int = DEFAULT_MIN_NUMEL
    state_bits: int = 0
    shifts: int = 6
    seeds: int = 1
    seed: int = 0
    effort: float = 1.0
    recalibration: bool = True

    def __post_init__(self) -> None:
        if self.representation != AUTO:
            get_representation(self.representation)
        budgets = {key: getattr(self, key) for key in ('ratio', 'bits', 'size', 'tolerance')}
        given = {key: value for key, value in budgets.items() if value is not None}
        if len(given) > 1:
            raise RiemError(f'budget: expected one of {", ".join(budgets)}, found {" and ".join(given)}; give one')
        if self.tolerance is not None and not (self.has_lattices and 0 < self.tolerance < math.inf):
            raise RiemError(
                f'tolerance: expected a number above 0 with lattice or auto, found {self.tolerance} with '
                f'{self.representation}'
            )
        if self.state_bits and not 2 <= self.state_bits <= 8:
            raise RiemError(f'state bits: expected 0 (by the budget) or 2 to 8, found {self.state_bits}')
        if not 1 <= self.shifts <= 64:
            raise RiemError(f'shifts: expected 1 to 64, found {self.shifts}')
        if self.seeds < 1:
            raise RiemError(f'seeds: expected at least 1, found {self.seeds}')
        if not 0 <= self.seed < 1 << 63:
            raise RiemError(f'seed: expected 0 to {(1 << 63) - 1}, found {self.seed}')
        if not 0 < self.effort < math.inf:
            raise RiemError(f'effort: expected a number above 0, found {self.effort}')

    @property
    def has_lattices(self) -> bool:
        """Whether the budget is met by one scale for the lattices of all weights."""
        return self.representation in (Lattice.name, AUTO)

    @property
    def has_budget(self) -> bool:
        """Whether any budget is given."""
        return any(value is not None for value in (self.ratio, self.bits, self.size, self.tolerance))


@dataclass(frozen=True)
class Compressed:
    """The archive to write, and a JSON-able report: ``weights`` (one entry each) and ``totals``."""

    archive: Archive
    report: dict[str, Any]


def compress(
    model: nn.Module,
    settings: Settings,
    *,
    dataset_meta: Mapping[str, Any],
    source: Source,
    probe: Probe | None = None,
    device: str = 'cpu',
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> Compressed:
    """Compress the weights of ``model``; everything else of its state dict stays dense or is derived.

    The result depends on the model, the settings and the probe only, not on ``threads``.

    Args:
        model: any module; it is not changed.
        settings: how.
        dataset_meta: class names and the like, for the file.
        source: the checkpoint, for the file.
        probe: images to run the model on; without one every weight has the identity as its metric, and norms and
            biases stay as they are.
        device: where fits and the probe run.
        threads: pieces of work at a time.
        on_progress: called with the share of the work done and the name of a weight or a stage.

    Raises:
        RiemError: nothing to compress, a pattern without a match, a budget that is too small.
    """
    if not settings.has_budget and not (settings.has_lattices and probe is not None):
        settings = replace(settings, ratio=DEFAULT_RATIO)
    if settings.tolerance is not None and probe is None:
        raise RiemError('tolerance: expected images that the network runs on, found none; give bits, ratio or size')
    state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    views = find_weights(model, settings.include, settings.exclude, settings.min_numel)
    if not views:
        raise RiemError('nothing to compress: expected weights with two or more dimensions, found none that match')
    job = _Job(model, state_dict, views, settings, probe, dict(dataset_meta), source, device, threads, on_progress)
    started = time.perf_counter()
    fits = job.fit_lattices() if settings.has_lattices else job.fit_planned()
    kept = job.recalibrated(fits) if probe is not None and settings.recalibration else state_dict
    archive = job.final_archive(fits, kept)
    others = [view for view in every_weight(model) if view.name not in {fit.view.name for fit in fits}]
    everything = {fit.view.name: fit for fit in (*fits, *(_keep_dense(view, kept[view.name]) for view in others))}
    ordered = [everything[view.name] for view in every_weight(model)]
    return Compressed(archive, _report(archive, state_dict, ordered, len(fits), job, time.perf_counter() - started))


def problem_of(view: WeightView, tensor: Tensor, metric: Metric | None, device: str = 'cpu') -> Problem:
    """What a lattice has to solve for a weight; without a metric that is the identity."""
    matrix = view.to_matrix(tensor).to(device)
    if metric is None:
        return Problem.of(matrix, period=_period(view))
    return Problem.of(matrix, metric.blocks, metric.output_weights.to(device), _period(view))


@dataclass(frozen=True)
class _Fitted:
    view: WeightView
    record: WeightRecord | None
    decoded: Tensor
    bits: int
    seconds: float
    damage: float | None = None


def _recorded(settings: Settings, probe: Probe | None) -> dict[str, Any]:
    """The settings as the file holds them."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(settings).items()}
    images = {'images': probe.describe()} if probe is not None else {}
    return {**{key: value for key, value in values.items() if value is not None}, **images}


class _Job:
    """One compression: the model, what is wanted, and where it runs."""

    def __init__(
        self,
        model: nn.Module,
        state_dict: dict[str, Tensor],
        views: list[WeightView],
        settings: Settings,
        probe: Probe | None,
        dataset_meta: dict[str, Any],
        source: Source,
        device: str,
        threads: int,
        on_progress: OnProgress | None,
    ) -> None:
        self.model, self.state_dict, self.views = model, state_dict, views
        self.settings, self.probe, self.device, self.threads = settings, probe, device, threads
        self._meta = {
            'dataset_meta': dataset_meta,
            'source': source,
            'settings': _recorded(settings, probe),
        }
        self._on_progress = on_progress
        self._stages = _stages(probe is not None, settings)
        for view in views:
            if not state_dict[view.name].isfinite().all():
                raise RiemError(
                    f'weight {view.name!r}: the weight matrix holds NaN or infinite values; repair the checkpoint first'
                )
        self.elements = sum(math.prod(view.shape) for view in views)
        self._vectors = find_vectors(model, settings.include, settings.exclude)
        mends = probe is not None and settings.recalibration
        self._planned = _as_if_mended(state_dict, mended_keys(model)) if mends else state_dict
        self.metrics: dict[str, Metric] = {}
        self.scale: float | None = None
        self.limit = math.inf
        if probe is not None:
            self.metrics = collect(
                self._on_device(model),
                views,
                probe,
                threads=threads,
                seed=settings.seed,
                on_progress=lambda share: self._stage('images')(share, 'images'),
            )
        self.sources = {name: metric.source for name, metric in self.metrics.items()}

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as the file holds them."""
        return self._meta['settings']

    def archive(self, fits: Sequence[_Fitted], state_dict: Mapping[str, Tensor], precision: int) -> Archive:
        """What is to be written, with these norms and biases rounded to this precision."""
        records = [fit.record for fit in fits if fit.record]
        return Archive.from_state_dict(state_dict, records, **self._meta, vectors=self._vectors, precision=precision)

    def final_archive(self, fits: Sequence[_Fitted], state_dict: Mapping[str, Tensor]) -> Archive:
        """The archive of a file of at most `limit` bits: norms and biases are rounded as coarsely as that takes."""
        for precision in range(self._precision(fits), LEAST_PRECISION - 1, -1):
            archive = self.archive(fits, state_dict, precision)
            size = 8 * len(archive.to_bytes())
            if size <= self.limit:
                return archive
        raise RiemError(f'budget: expected a file of {self.limit / 8:.0f} bytes, found {size // 8}; ask for more')

    def _precision(self, fits: Sequence[_Fitted]) -> int:
        return precision_for(sum(fit.bits for fit in fits) / self.elements)

    def fit_planned(self) -> list[_Fitted]:
        """A budget for each weight beforehand, then its fit."""
        self.limit = self._wanted_bits()
        plans = self._plan()
        tasks = [
            Task(plan.view.name, math.prod(plan.view.shape), lambda progress, plan=plan: self._fit(plan, progress))
            for plan in plans
        ]
        return run_all(tasks, self.threads, self._stage('fit'))

    def fit_lattices(self) -> list[_Fitted]:
        """Lattices under one scale that meets the budget; with ``auto`` another representation where that is better."""
        started = time.perf_counter()
        names = [view.name for view in self.views]
        tasks = [Task(view.name, _cube(view), lambda _, view=view: self._problem(view)) for view in self.views]
        problems = dict(zip(names, run_all(tasks, self.threads, self._stage('factor'))))
        steps = relative_steps(problems, {name: name in self.sources for name in names})
        stages = self._halving_stages(*self._stages['fit'])

        def solve(scale: float) -> Solutions:
            return solve_all(problems, steps, scale, self.threads, next(stages))

        self.scale, solutions = self._search_budget(solve, lambda wanted: self._start(problems, steps, wanted))
        seconds = time.perf_counter() - started
        tasks = [
            Task(view.name, 1, lambda progress, view=view: self._finish(view, *solutions[view.name], progress))
            for view in self.views
        ]
        fits = run_all(tasks, self.threads, self._stage('choose'))
        return [replace(fit, seconds=fit.seconds + seconds * fit.decoded.numel() / self.elements) for fit in fits]

    def recalibrated(self, fits: Sequence[_Fitted]) -> dict[str, Tensor]:
        """The state dict with norms and biases that suit the decoded weights; the weights are the original ones."""
        self._stage('recalibrate')(0.0, 'norms and biases')
        compressed = self._on_device(self.model)
        parameters = dict(compressed.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for fit in fits:
                parameters[fit.view.name].copy_(fit.decoded)
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # sums do not depend on how many threads there are
        try:
            recalibrate(compressed, self._on_device(self.model), self.probe)
        finally:
            torch.set_num_threads(before)
        weights = {key for fit in fits for key in (fit.view.name, *fit.view.aliases)}
        mended: dict[str, Tensor] = {}
        shared: dict[tuple[int, torch.Size], Tensor] = {}
        for key, tensor in compressed.state_dict().items():
            original = self.state_dict[key]
            if key not in weights and not torch.equal(tensor.cpu(), original):
                place = original.data_ptr(), original.shape
                mended[key] = shared.setdefault(place, _storable(key, tensor.cpu(), original))
        self._stage('recalibrate')(1.0, 'norms and biases')
        return {**self.state_dict, **mended}

    def _on_device(self, model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).to(self.device).eval()

    def _problem(self, view: WeightView) -> Problem:
        take = self.metrics.get if self.settings.representation == AUTO else self.metrics.pop  # it takes much memory
        return problem_of(view, self.state_dict[view.name], take(view.name, None), self.device)

    def _predicted_error(self, solutions: Solutions) -> float:
        return math.sqrt(sum(damage for name, (_, damage) in solutions.items() if name in self.sources))

    def _search_budget(
        self, solve: Callable[[float], Solutions], guess: Callable[[float], float]
    ) -> tuple[float, Solutions]:
        """The scale that meets the budget, or the default one, and the solutions."""
        if self.settings.tolerance is not None:
            return self._search_error(solve, self.settings.tolerance)
        if self.settings.has_budget:
            return self._search_bytes(solve, self._wanted_bits(), guess(self._wanted_bits()))
        found = self._search_error(solve, DEFAULT_ERRORS[0])
        limit = DEFAULT_SIZE * 32 * _numel(self.state_dict)
        if self._file_bits(found[1]) <= limit:
            return found
        with contextlib.suppress(RiemError):  # what stays dense may be too much for that size
            sized = self._search_bytes(solve, limit, guess(limit))
            if self._predicted_error(sized[1]) <= DEFAULT_ERRORS[1]:
                return sized
        self.limit = math.inf
        return self._search_error(solve, DEFAULT_ERRORS[1])

    def _search_error(self, solve: Callable[[float], Solutions], tolerance: float) -> tuple[float, Solutions]:
        return search(solve, self._predicted_error, tolerance, start=tolerance * 16, falls=False)

    def _file_bits(self, solutions: Solutions) -> int:
        fits = [self._finish_lattice(view, *solutions[view.name]) for view in self.views]
        return 8 * len(self.archive(fits, self._planned, self._precision(fits)).to_bytes())

    def _start(self, problems: Mapping[str, Problem], steps: Mapping[str, float], wanted: float) -> float:
        """A first guess of the scale: as if the weights were Gaussian."""
        scale = 1.0
        for _ in range(40):
            rate = sum(
                problem.weight.numel() * 0.5 * math.log2(1 + 17 * (problem.spread / (scale * steps[name])) ** 2)
                for name, problem in problems.items()
            )
            scale *= 2 ** ((rate - wanted) / sum(problem.weight.numel() for problem in problems.values()))
        return min(max(scale, 1e-3), 1e3)

    def _wanted_bits(self) -> float:
        settings = self.settings
        return target_bits(_numel(self.state_dict), self.elements, settings.ratio, settings.bits, settings.size)

    def _search_bytes(
        self, solve: Callable[[float], Solutions], wanted: float, start: float
    ) -> tuple[float, Solutions]:
        """The scale whose whole file has at most the bits that are wanted.

        Raises:
            RiemError: what stays dense has no room, or no step gives so small a file.
        """
        self.limit = wanted
        views = {view.name: view for view in self.views}
        rest = self._rest_bits(wanted)
        excess, found = 0.0, None

        def measure(solutions: Solutions) -> float:
            weights = sum(_cost(views[name], lattice) for name, (lattice, _) in solutions.items())
            return weights + rest + excess

        for _ in range(4):  # what the records take is known once they are written
            if wanted <= rest + excess:
                raise RiemError(
                    f'budget: expected room for the {(rest + excess) / 8:.0f} bytes of what stays dense and of the '
                    f'records, found {wanted / 8:.0f} bytes for the whole file; ask for a larger '
                    'ratio or more bits, or compress more of the weights'
                )
            scale, solutions = search(solve, measure, wanted, start)
            written = self._file_bits(solutions)
            if written <= wanted:
                found = scale, solutions
                if written >= CLOSE_ENOUGH * wanted:
                    break
            excess += written - measure(solutions)
            start = scale
        if found is None:
            raise RiemError(f'budget: expected a file of {wanted / 8:.0f} bytes, found none of a step; ask for more')
        return found

    def _rest_bits(self, wanted: float) -> int:
        """Bits of a file with everything but the weights, where the whole is to have those that are wanted."""
        covered = {key for view in self.views for key in (view.name, *view.aliases)}
        rest = {key: tensor for key, tensor in self._planned.items() if key not in covered}
        return 8 * len(self.archive([], rest, precision_for(wanted / self.elements)).to_bytes())

    def _plan(self) -> list[Plan]:
        wanted = self._wanted_bits()
        rest = self._rest_bits(wanted)
        if wanted <= rest:
            raise RiemError(
                f'budget: expected room for the {rest // 8} bytes of what stays dense, found {wanted / 8:.0f} bytes '
                'for the whole file; ask for a larger ratio or more bits, or compress more of the weights'
            )
        representation = get_representation(self.settings.representation)
        options = {'state_bits': self.settings.state_bits, 'shifts': self.settings.shifts}
        dense_bits = {view.name: 8 * store(view.name, self.state_dict[view.name]).layout.n_bytes for view in self.views}
        return allocate(self.views, representation, wanted - rest, options, dense_bits)

    def _fit(self, plan: Plan, progress: Callable[[float], None]) -> _Fitted:
        started = time.perf_counter()
        if plan.settings is None:
            return _keep_dense(plan.view, self.state_dict[plan.view.name])
        encoded = self._represent(self.settings.representation, plan.view, plan.settings, progress)
        record = WeightRecord(plan.view, encoded)
        return _Fitted(plan.view, record, record.decode(), encoded.payload_bits(), time.perf_counter() - started)

    def _represent(
        self, name: str, view: WeightView, settings: dict[str, Any], progress: Callable[[float], None] | None
    ) -> Representation:
        metric = self.metrics.get(view.name)
        matrix = view.to_matrix(self.state_dict[view.name]).to(self.device)
        try:
            return get_representation(name).fit(
                matrix,
                settings,
                input_metric=None if metric is None else metric.dense().to(self.device),
                output_weights=None if metric is None else metric.output_weights.to(matrix),
                seed=self.settings.seed,
                seeds=self.settings.seeds,
                effort=self.settings.effort,
                progress=progress,
            )
        except RiemError as error:
            raise RiemError(f'weight {view.name!r}: {error}') from error

    def _finish(self, view: WeightView, lattice: Lattice, damage: float, progress: Callable[[float], None]) -> _Fitted:
        fitted = self._finish_lattice(view, lattice, damage)
        if self.settings.representation != AUTO or fitted.record is None:
            return fitted
        started = time.perf_counter()
        others = [name for name in representation_names() if name != Lattice.name]
        for number, name in enumerate(others):
            progress(number / len(others))
            kind = get_representation(name)
            options = {'state_bits': self.settings.state_bits, 'shifts': self.settings.shifts}
            settings = kind.configure(view.matrix_shape, fitted.bits, **options)
            if settings is None:
                continue
            other = self._represent(
                name, view, settings, lambda share, number=number: progress((number + share) / len(others))
            )
            if other.payload_bits() <= fitted.bits:
                its_damage = self._damage(view, other.decode())
                if its_damage < fitted.damage:
                    record = WeightRecord(view, other)
                    fitted = _Fitted(view, record, record.decode(), other.payload_bits(), 0.0, its_damage)
        return replace(fitted, seconds=time.perf_counter() - started)

    def _finish_lattice(self, view: WeightView, lattice: Lattice, damage: float) -> _Fitted:
        """The record of a lattice, or the weight itself where that is smaller."""
        if _cost(view, lattice) < lattice.payload_bits():
            return _keep_dense(view, self.state_dict[view.name])
        record = WeightRecord(view, lattice)
        return _Fitted(view, record, record.decode(), lattice.payload_bits(), 0.0, damage)

    def _damage(self, view: WeightView, decoded: Tensor) -> float:
        """In the units of the lattice's own."""
        metric = self.metrics.get(view.name)
        error = (view.to_matrix(self.state_dict[view.name]) - decoded).double()
        if metric is None:
            return float(error.square().sum())
        groups = error.reshape(metric.groups, -1, error.shape[1])
        total, start = torch.zeros(groups.shape[:2], dtype=torch.float64), 0
        for block in metric.blocks:
            part = groups[..., start : start + block.shape[-1]]
            total += (part @ block.double() * part).sum(2)
            start += block.shape[-1]
        return float((total.reshape(-1) * metric.output_weights).sum())

    def _stage(self, name: str) -> OnProgress:
        return self._between(*self._stages[name])

    def _between(self, first: float, last: float) -> OnProgress:
        def advance(share: float, name: str) -> None:
            if self._on_progress:
                self._on_progress(first + (last - first) * share, name)

        return advance

    def _halving_stages(self, first: float, last: float) -> Iterator[OnProgress]:
        """Stages of a search whose number of turns is not known: each takes half of what is left."""
        while True:
            middle = (first + last) / 2
            yield self._between(first, middle)
            first = middle


def _stages(has_images: bool, settings: Settings) -> dict[str, tuple[float, float]]:
    """Where in the whole work each stage begins and ends, by what it roughly takes."""
    efforts = {
        'images': 30 * has_images,
        'factor': 15 * settings.has_lattices,
        'fit': 40,
        'choose': (40 if settings.representation == AUTO else 5) * settings.has_lattices,
        'recalibrate': 5 * (has_images and settings.recalibration),
    }
    stages, done, total = {}, 0, sum(efforts.values())
    for name, effort in efforts.items():
        stages[name] = (done / total, (done + effort) / total)
        done += effort
    return stages


def _period(view: WeightView) -> int:
    return math.prod(view.shape[2:]) if view.layout != 'unit_first' else 1


def _cube(view: WeightView) -> float:
    """Cost of factoring a metric."""
    return float(view.matrix_shape[1]) ** 3


def _cost(view: WeightView, lattice: Lattice) -> float:
    """Bits that a weight takes in the file: those of the lattice, or of the dense weight where these are less."""
    return min(lattice.payload_bits(), DENSE_BITS * math.prod(view.shape) - RECORD_BITS)


def _storable(key: str, tensor: Tensor, original: Tensor) -> Tensor:
    """The tensor such that it takes no more bytes than the original: in fp16 where that was exact enough."""
    if not tensor.is_floating_point() or store(key, original).layout.storage != 'half':
        return tensor
    limit = torch.finfo(torch.float16).max
    return tensor.clamp(-limit, limit).half().to(tensor.dtype)


def _as_if_mended(state_dict: Mapping[str, Tensor], mended: set[str]) -> dict[str, Tensor]:
    """The state dict with noise in place of constants that recalibration may change: they take next to no bytes."""
    generator = torch.Generator().manual_seed(0)
    noise: dict[int, Tensor] = {}
    for key, tensor in state_dict.items():
        if key in mended and derive(key, tensor):
            random = torch.randn(tensor.shape, generator=generator).half().to(tensor.dtype)
            noise.setdefault(tensor.data_ptr(), random)
    return {key: noise.get(tensor.data_ptr(), tensor) for key, tensor in state_dict.items()}


def _numel(state_dict: Mapping[str, Tensor]) -> int:
    """Floating elements of a state dict, shared ones counted once: what an fp32 checkpoint holds."""
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point()}
    return sum(distinct.values())


def _keep_dense(view: WeightView, tensor: Tensor) -> _Fitted:
    stored = store(view.name, tensor)
    return _Fitted(view, None, stored.decode(), 8 * stored.layout.n_bytes, 0.0)


def _report(
    archive: Archive, state_dict: Mapping[str, Tensor], fits: Sequence[_Fitted], wanted: int, job: _Job, seconds: float
) -> dict[str, Any]:
    """Per weight: shape, representation, bits, errors, seconds; and totals. Sizes in bytes.

    ``fits`` are those of all weights, ``wanted`` how many of them were to be compressed.
    """
    size = len(archive.to_bytes())
    numel = _numel(state_dict)
    represented = sum(math.prod(fit.view.shape) for fit in fits if fit.record)
    damages = [fit.damage for fit in fits if fit.damage is not None and fit.view.name in job.sources]
    return {
        'settings': job.recorded,
        'weights': [_entry(fit, state_dict[fit.view.name], job.sources.get(fit.view.name)) for fit in fits],
        'totals': {
            'bytes_fp32': 4 * numel,
            'bytes_fp16': 2 * numel,
            'bytes': size,
            'ratio': size / (4 * numel),
            'bits_per_weight': 8 * size / job.elements,
            'weights': wanted,
            'represented_elements': represented,
            'other_elements': numel - represented,
            'scale': job.scale,
            'predicted_error': math.sqrt(sum(damages)) if damages else None,
            'seconds': sum(fit.seconds for fit in fits),
            'wall_seconds': seconds,
        },
    }


def _entry(fit: _Fitted, tensor: Tensor, source: str | None) -> dict[str, Any]:
    weight, decoded = tensor.double(), fit.decoded.double()
    error = weight - decoded
    spread, power = float(weight.std(unbiased=False)), float(weight.square().sum())
    noise = float(error.square().sum())
    return {
        'name': fit.view.name,
        'aliases': list(fit.view.aliases),
        'shape': list(fit.view.shape),
        'representation': fit.record.encoded.name if fit.record else 'dense',
        'settings': fit.record.encoded.settings() if fit.record else {},
        'metric': source or 'identity',
        'bits': fit.bits,
        'bits_per_weight': fit.bits / weight.numel(),
        'relative_error': float(error.abs().mean()) / spread if spread else 0.0,
        'snr_db': 10 * math.log10(power / noise) if noise and power else None,
        'damage': fit.damage,
        'seconds': round(fit.seconds, 3),
    }
