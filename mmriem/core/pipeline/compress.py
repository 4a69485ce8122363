"""The pipeline: find the weights of a module, allocate the budget, fit each weight, gather archive and report."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..budget.plan import DENSE_BITS, RECORD_BITS, Plan, allocate, target_bits
from ..budget.scale import CLOSE_ENOUGH, COARSEST, relative_steps, search
from ..correction.recalibration import OBSERVER, observe, recalibrate, recalibrated_keys
from ..correction.tuning import Tuned, tune
from ..errors import RiemError
from ..execution.executor import Executor
from ..execution.journal import Journal
from ..execution.memory import release_memory
from ..execution.tasks import Task, one_thread, run_all
from ..execution.workers import Workers
from ..file.archive import Archive
from ..file.dense import store
from ..file.derived import derive
from ..file.folded_norms import find_norms, rounded_norms
from ..file.manifest import Source
from ..file.vectors import LEAST_PRECISION, NORM_PRECISION, PRECISION, find_vectors, precision_for
from ..images.probe import Probe
from ..metric.metric import Metric, parts
from ..metric.pullback import each_metric
from ..representations.base import Representation, get_representation, representation_names
from ..representations.lattice.problem import Problem, useful_threads
from ..representations.lattice.representation import Lattice
from ..weights.views import WeightView, every_weight, find_weights
from .encoded_weight import Encoded, Piece, unpacked
from .settings import (
    AUTO,
    DEFAULT_ERRORS,
    DEFAULT_RATIO,
    DEFAULT_SIZE,
    DEFAULT_TUNED_ERROR,
    DEFAULT_TUNING,
    SMALL_IMAGE,
    Settings,
)

RECALIBRATED_SHARE = 0.1
"""Of a constant, such as a variance of 1, by which recalibration or tuning is expected to change it."""
OnProgress = Callable[[float, str], None]
"""Called with the share of the work done, 0 to 1, and the name of the weight that it concerns."""
OnLayer = Callable[[int, int, int], None]
"""Called as a weight is done: how many are, of how many, and their bytes. A search does all of them several times."""
Pieces = dict[str, Piece]
"""A piece for each weight, by name."""


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
    on_layer: OnLayer | None = None,
    workers: Workers | None = None,
    journal: Journal | None = None,
) -> Compressed | None:
    """Compress the weights of ``model``; everything else of its state dict stays dense or is derived.

    The result depends on the model, the settings and the probe only, not on ``threads``, ``workers`` or what was in
    the journal before.

    Args:
        model: any module; it is not changed.
        settings: how.
        dataset_meta: class names and the like, for the file.
        source: the checkpoint, for the file.
        probe: images to run the model on; without one every weight has the identity as its metric, and norms and
            biases stay as they are.
        device: where fits and the probe run.
        threads: pieces of work at a time.
        on_progress: called with the share of the work done and the name of a weight or a stage; of several processes,
            of the share of this one.
        on_layer: called as a weight of this process is done.
        workers: the processes that share the work, each of which calls this; None is this one alone.
        journal: keeps finished weights; those that it holds are not done again. It must have begun.

    Returns:
        What is to be written; None in all processes but the first.

    Raises:
        RiemError: nothing to compress, a pattern without a match, a budget that is too small, or a process is gone.
    """
    started = time.perf_counter()
    if not settings.has_budget and not (settings.has_lattices and probe is not None):
        settings = replace(settings, ratio=DEFAULT_RATIO)
    if settings.tolerance is not None and probe is None:
        raise RiemError('tolerance: expected images that the network runs on, found none; give bits, ratio or size')
    if settings.tuning is None:
        is_short = not settings.has_budget and probe is not None and probe.pixels <= SMALL_IMAGE
        settings = replace(settings, tuning=DEFAULT_TUNING if is_short and _trainable(model, settings) else 0)
    if settings.tuning and probe is None:
        raise RiemError('tuning: expected images that the network runs on, found none; leave tuning out, --tune 0')
    state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    views = find_weights(model, settings.include, settings.exclude, settings.min_numel)
    if not views:
        raise RiemError('nothing to compress: expected weights with two or more dimensions, found none that match')
    executor = Executor(threads, workers or Workers(), journal)
    job = _Job(
        model, state_dict, views, settings, probe, dict(dataset_meta), source, device, executor, on_progress, on_layer
    )
    pieces = job.fit_lattices() if settings.has_lattices else job.fit_planned()
    if executor.workers.rank:
        if job.recalibrates and executor.workers.rank == OBSERVER:
            release_memory()
            with one_thread():
                observe(job.on_device(model), probe, executor)
        return None
    pieces = job.unpacked(pieces)
    kept = job.adapted(pieces) if job.recalibrates or job.trained else state_dict
    archive = job.final_archive(pieces, kept)
    report = _report(archive, model, pieces, job)
    report['totals']['wall_seconds'] = time.perf_counter() - started
    return Compressed(archive, report)


def reencode(
    model: nn.Module, kept: Mapping[str, Representation], *, dataset_meta: Mapping[str, Any], source: Source
) -> Compressed:
    """Write weights in the representations that are given; everything else stays dense or is derived. No fit.

    Args:
        model: any module.
        kept: representations by the state-dict key of their weight.
        dataset_meta, source: for the file.
    """
    started = time.perf_counter()
    state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    views = [view for view in every_weight(model) if view.name in kept]
    job = _Job(model, state_dict, views, Settings(), None, dict(dataset_meta), source, 'cpu', Executor())
    job.recorded.clear()
    job.recorded['states'] = 'as trained'
    pieces = {view.name: Piece.whole(view, state_dict[view.name], kept[view.name], None, 0.0) for view in views}
    archive = job.final_archive(pieces, state_dict)
    report = _report(archive, model, pieces, job)
    report['totals']['wall_seconds'] = time.perf_counter() - started
    return Compressed(archive, report)


def problem_of(
    view: WeightView, tensor: Tensor, metric: Metric | None, device: str = 'cpu', with_trellis: bool = True
) -> Problem:
    """What a lattice has to solve for a weight; without a metric that is the identity."""
    matrix = view.to_matrix(tensor).to(device)
    known = (None, None) if metric is None else (metric.blocks, metric.output_weights.to(device))
    return Problem.of(matrix, *known, view.period, with_trellis)


@dataclass(frozen=True)
class _Traits:
    """What the others need to know of a problem: as its properties of these names."""

    spread: float
    log_sensitivity: float
    seconds: float

    def to_bytes(self) -> bytes:
        return _TRAITS.pack(self.spread, self.log_sensitivity, self.seconds)

    @classmethod
    def from_bytes(cls, data: bytes) -> _Traits:
        return cls(*_TRAITS.unpack(data))


_TRAITS = struct.Struct('<3d')


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
        executor: Executor,
        on_progress: OnProgress | None = None,
        on_layer: OnLayer | None = None,
    ) -> None:
        self.model, self.state_dict, self.views = model, state_dict, views
        self.settings, self.probe, self.device, self.executor = settings, probe, device, executor
        self._meta = {
            'dataset_meta': dataset_meta,
            'source': source,
            'settings': _recorded(settings, probe),
        }
        self._on_progress, self._on_layer = on_progress, on_layer
        self._stages = _stages(probe is not None, settings)
        for view in views:
            if not state_dict[view.name].isfinite().all():
                raise RiemError(
                    f'weight {view.name!r}: the weight matrix holds NaN or infinite values; repair the checkpoint first'
                )
        self.elements = sum(math.prod(view.shape) for view in views)
        self._vectors = find_vectors(model, settings.include, settings.exclude)
        self._norms = find_norms(model, self._vectors)
        self.recalibrates = probe is not None and settings.recalibration
        self.trained = _trainable(model, settings) if settings.tuning else ()
        if settings.tuning and not self.trained:
            raise RiemError('tuning: expected norms or biases to train, found none; leave tuning out, --tune 0')
        self.tuned: Tuned | None = None
        changed = (recalibrated_keys(model) if self.recalibrates else set()) | set(self.trained)
        self._planned = _as_if_changed(state_dict, changed)
        self.scale: float | None = None
        self.limit = math.inf
        self.turns = 0
        self.stage_seconds: Counter[str] = Counter()
        self.seconds: dict[str, Counter[str]] = {view.name: Counter() for view in views}
        self.costs = {view.name: layer_cost(view, settings) for view in views}
        self.owners = dict(zip(self.costs, executor.owners(list(self.costs.values()))))
        self.metrics: dict[str, Metric] = {}
        self.problems: dict[str, Problem] = {}
        self._finished: dict[str, tuple[Encoded, Piece]] = {}
        self.sources = self._collect() if probe is not None else {}

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as the file holds them."""
        return self._meta['settings']

    def archive(self, pieces: Pieces, state_dict: Mapping[str, Tensor], rate: float, coarser: int = 0) -> Archive:
        """What is to be written, with these norms and biases, rounded as goes with weights of ``rate`` bits.

        Args:
            coarser: quarter octaves by which their steps are larger.
        """
        views = {view.name: view for view in self.views}
        records = [piece.record(views[name]) for name, piece in pieces.items() if piece.encoded is not None]
        precision, of_norms = (precision_for(rate, least) - coarser for least in (PRECISION, NORM_PRECISION))
        return Archive.from_state_dict(
            state_dict,
            records,
            **self._meta,
            vectors=self._vectors,
            precision=max(precision, LEAST_PRECISION),
            rounded=rounded_norms(self._norms, state_dict, self._vectors, max(of_norms, LEAST_PRECISION)),
        )

    def final_archive(self, pieces: Pieces, state_dict: Mapping[str, Tensor]) -> Archive:
        """The archive of a file of at most `limit` bits: norms and biases are rounded as coarsely as that takes."""
        with self._timed('archive'):
            rate = self._rate(pieces)
            for coarser in range(precision_for(rate) - LEAST_PRECISION + 1):
                archive = self.archive(pieces, state_dict, rate, coarser)
                size = 8 * len(archive.to_bytes())
                if size <= self.limit:
                    return archive
        raise RiemError(f'budget: expected a file of {self.limit / 8:.0f} bytes, found {size // 8}; ask for more')

    def bits(self, view: WeightView, piece: Piece) -> int:
        """Bits of a weight in the file."""
        if piece.encoded is not None:
            return piece.encoded.payload_bits()
        return 8 * store(view.name, self.state_dict[view.name]).layout.n_bytes

    def _rate(self, pieces: Pieces) -> float:
        """Bits of a weight, on average."""
        return sum(self.bits(view, pieces[view.name]) for view in self.views) / self.elements

    def fit_planned(self) -> Pieces:
        """A budget for each weight beforehand, then its fit."""
        self.limit = self._wanted_bits()
        plans = self._plan()
        tasks = [
            Task(
                plan.view.name,
                math.prod(plan.view.shape),
                lambda progress, plan=plan: self._fit(plan, progress),
                self.owners[plan.view.name],
                f'fit {plan.view.name}',
            )
            for plan in plans
        ]
        with self._timed('fit'):
            return self._run('fit', tasks, self._stage('fit'), self._counter())

    def fit_lattices(self) -> Pieces:
        """Lattices under one scale that meets the budget; with ``auto`` another representation where that is better."""
        with self._timed('factor'):
            traits = self._factored()
        steps = relative_steps(traits, {name: name in self.sources for name in traits})
        stages = self._halving_stages(*self._stages['fit'])

        def solve(scale: float) -> Pieces:
            with self._timed('solve'):
                return self._solved(steps, scale, next(stages))

        self.scale, pieces = self._search_budget(solve, lambda wanted: self._start(traits, steps, wanted))
        self.problems.clear()
        with self._timed('choose'):
            return self._chosen(pieces)

    def unpacked(self, pieces: Pieces) -> Pieces:
        """The pieces with representations that are parsed."""
        with self._timed('unpack'):
            tasks = [
                Task(name, self.costs[name], lambda _, piece=piece: replace(piece, encoded=unpacked(piece.encoded)))
                for name, piece in pieces.items()
                if piece.encoded is not None
            ]
            return {**pieces, **dict(zip((task.name for task in tasks), run_all(tasks, self.executor.threads)))}

    def adapted(self, pieces: Pieces) -> dict[str, Tensor]:
        """The state dict with norms and biases that suit the decoded weights; the weights are the original ones."""
        release_memory()
        compressed, reference = self.on_device(self.model), self.on_device(self.model)
        parameters = dict(compressed.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for view in self.views:
                record = pieces[view.name].record(view)
                stored = record or store(view.name, self.state_dict[view.name])
                parameters[view.name].copy_(stored.decode())
        with one_thread():
            if self.recalibrates:
                with self._timed('recalibrate'), self._staged('recalibrate', 'norms and biases'):
                    recalibrate(compressed, reference, self.probe, self.executor)
            if self.trained:
                with self._timed('tune'), self._staged('tune', 'norms and biases') as advance:
                    self.tuned = self._tune(compressed, reference, advance)
        weights = {key for view in self.views for key in (view.name, *view.aliases)}
        changed: dict[str, Tensor] = {}
        shared: dict[tuple[int, torch.Size], Tensor] = {}
        for key, tensor in compressed.state_dict().items():
            original = self.state_dict[key]
            if key not in weights and not torch.equal(tensor.cpu(), original):
                place = original.data_ptr(), original.shape
                changed[key] = shared.setdefault(place, _storable(key, tensor.cpu(), original))
        return {**self.state_dict, **changed}

    def _tune(self, compressed: nn.Module, reference: nn.Module, on_progress: Callable[[float], None]) -> Tuned:
        return tune(
            compressed,
            reference,
            [view.name.rpartition('.')[0] for view in self.views],
            self.trained,
            self.probe.others(self.settings.tuning),
            self.settings.tuning,
            threads=self.executor.threads,
            on_progress=on_progress,
        )

    def on_device(self, model: nn.Module) -> nn.Module:
        """A copy of the model where fits and the probe run."""
        return copy.deepcopy(model).to(self.device).eval()

    def _run(
        self,
        stage: str,
        tasks: Sequence[Task],
        on_progress: OnProgress | None = None,
        on_result: Callable[[Piece], None] | None = None,
        executor: Executor | None = None,
    ) -> Pieces:
        """The pieces that the tasks make, and their seconds under that stage."""
        made = (executor or self.executor).run(tasks, Piece.to_bytes, Piece.from_bytes, on_progress, on_result)
        for task, piece in zip(tasks, made):
            self.seconds[task.name][stage] += piece.seconds
        return {task.name: piece for task, piece in zip(tasks, made)}

    def _counter(self) -> Callable[[Piece], None]:
        """Tells how many weights of this process are done, and their bytes."""
        own = [name for name, owner in self.owners.items() if owner == self.executor.workers.rank]
        done, size, lock = 0, 0, threading.Lock()

        def count(piece: Piece) -> None:
            nonlocal done, size
            with lock:
                done += 1
                size += piece.encoded.payload_bits() // 8 if piece.encoded is not None else 0
                if self._on_layer:
                    self._on_layer(done, len(own), size)

        return count

    @contextlib.contextmanager
    def _staged(self, stage: str, name: str) -> Iterator[Callable[[float], None]]:
        """Within, a stage that tells its progress by the share that is done."""
        advance = self._stage(stage)
        advance(0.0, name)
        yield lambda share: advance(share, name)
        advance(1.0, name)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] += time.perf_counter() - started

    def _collect(self) -> dict[str, str]:
        """Where the metric of each weight comes from; those that this process owns are in memory, or in the journal."""
        rank, journal = self.executor.workers.rank, self.executor.journal
        own = {name: self.executor.kept(f'source {name}') for name, owner in self.owners.items() if owner == rank}
        every = self.executor.workers.exchange(b'new' if None in own.values() else b'kept')
        if b'new' in every:
            own = dict.fromkeys(own, b'')
            metrics = each_metric(
                self.on_device(self.model),
                self.views,
                self.probe,
                self.executor,
                list(self.owners.values()),
                seed=self.settings.seed,
                on_progress=lambda share: self._stage('images')(share, 'images'),
            )
            with self._timed('images'):
                for name, metric in metrics:
                    own[name] = metric.source.encode()
                    if journal is None:
                        self.metrics[name] = metric
                    else:
                        journal.put(f'metric {name}', metric.to_bytes())
                for name, source in own.items():
                    self.executor.keep(f'source {name}', source)
        named = {name: source.decode() for name, source in own.items() if source}
        parts_ = self.executor.workers.exchange(json.dumps(named).encode())
        found = {name: source for part in parts_ for name, source in json.loads(part).items()}
        return {name: found[name] for name in self.owners if name in found}

    def _metric(self, name: str) -> Metric | None:
        """The metric of a weight that this process owns; None for the identity."""
        if name in self.metrics or name not in self.sources:
            return self.metrics.get(name)
        piece = self.executor.kept(f'metric {name}')
        if piece is None:
            raise RiemError(
                f'{self.executor.journal.folder}: expected the metric of weight {name!r}, found none that is whole; '
                'start over with --force'
            )
        return Metric.from_bytes(piece)

    def _problem(self, view: WeightView) -> Problem:
        if view.name not in self.problems:
            weight, metric = self.state_dict[view.name], self._metric(view.name)
            problem = problem_of(view, weight, metric, self.device, self.settings.trellis)
            self.problems[view.name] = problem
            if self.settings.representation != AUTO:
                self.metrics.pop(view.name, None)  # it takes much memory
        return self.problems[view.name]

    def _factored(self) -> dict[str, _Traits]:
        def factor(view: WeightView) -> _Traits:
            started = time.thread_time()
            problem = self._problem(view)
            return _Traits(problem.spread, problem.log_sensitivity, time.thread_time() - started)

        tasks = [
            Task(name, _cube(view), lambda _, view=view: factor(view), self.owners[name], f'traits {name}')
            for name, view in zip(self.costs, self.views)
        ]
        traits = self.executor.run(tasks, _Traits.to_bytes, _Traits.from_bytes, self._stage('factor'))
        for view, its in zip(self.views, traits):
            self.seconds[view.name]['factor'] += its.seconds
        return {view.name: its for view, its in zip(self.views, traits)}

    def _solved(self, steps: Mapping[str, float], scale: float, on_progress: OnProgress) -> Pieces:
        """All weights as lattices of that scale, payloads made."""

        def solve(view: WeightView, step: float) -> Piece:
            started = time.thread_time()
            lattice, distortion = self._problem(view).solve(step)
            lattice.to_payload()
            return Piece(lattice, distortion, time.thread_time() - started)

        self.turns += 1
        tasks = []
        for view in self.views:
            step = scale * steps[view.name]
            work = lambda _, view=view, step=step: solve(view, step)  # noqa: E731
            cost = math.prod(view.shape) * view.matrix_shape[1]
            tasks.append(Task(view.name, cost, work, self.owners[view.name], f'solve {view.name} {step.hex()}'))
        threads = useful_threads(self.executor.threads, self.settings.trellis)
        return self._run('solve', tasks, on_progress, self._counter(), replace(self.executor, threads=threads))

    def _written(self, pieces: Pieces, on_progress: OnProgress | None = None) -> Pieces:
        """Lattices as the file holds them: with the digests of the decoded weights, and dense where that is smaller."""

        def write(view: WeightView, piece: Piece) -> Piece:
            before, written = self._finished.get(view.name, (None, None))
            if before is piece.encoded:
                return replace(written, seconds=0.0)
            started = time.thread_time()
            weight = self.state_dict[view.name]
            if _cost(view, piece.encoded) < piece.encoded.payload_bits():
                return Piece.whole(view, weight, None, None, 0.0)
            written = Piece.whole(view, weight, unpacked(piece.encoded), piece.distortion, 0.0)
            return replace(written, seconds=time.thread_time() - started)

        tasks = [
            Task(view.name, 1, lambda _, view=view: write(view, pieces[view.name]), self.owners[view.name])
            for view in self.views
        ]
        written = self._run('write', tasks, on_progress)
        self._finished = {name: (pieces[name].encoded, piece) for name, piece in written.items()}
        return written

    def _chosen(self, pieces: Pieces) -> Pieces:
        """The pieces of the file: with ``auto`` those that do the least distortion, else the lattices."""
        is_auto = self.settings.representation == AUTO
        written = self._written(pieces, None if is_auto else self._stage('choose'))
        if not is_auto:
            return written
        tasks = [
            Task(
                view.name,
                1,
                lambda progress, view=view: self._choose(view, written[view.name], progress),
                self.owners[view.name],
                f'choose {view.name} {self.scale.hex()}',
            )
            for view in self.views
        ]
        return self._run('choose', tasks, self._stage('choose'), self._counter())

    def _predicted_error(self, pieces: Pieces) -> float:
        return math.sqrt(sum(pieces[view.name].distortion for view in self.views if view.name in self.sources))

    def _search_budget(self, solve: Callable[[float], Pieces], guess: Callable[[float], float]) -> tuple[float, Pieces]:
        """The scale that meets the budget, or the default one, and the pieces."""
        if self.settings.tolerance is not None:
            return self._search_error(solve, self.settings.tolerance)
        if self.settings.has_budget:
            return self._search_bytes(solve, self._wanted_bits(), guess(self._wanted_bits()))
        found = self._search_error(solve, DEFAULT_ERRORS[0])
        limit = DEFAULT_SIZE * 32 * _numel(self.state_dict)
        if self._file_bits(found[1]) <= limit:
            return found
        most = DEFAULT_TUNED_ERROR if self.trained else DEFAULT_ERRORS[1]
        with contextlib.suppress(RiemError):  # what stays dense may be too much for that size
            sized = self._search_bytes(solve, limit, guess(limit))
            if self._predicted_error(sized[1]) <= most:
                return sized
        self.limit = math.inf
        return self._search_error(solve, most)

    def _search_error(self, solve: Callable[[float], Pieces], tolerance: float) -> tuple[float, Pieces]:
        return search(solve, self._predicted_error, tolerance, start=tolerance * 16, falls=False)

    def _file_bits(self, pieces: Pieces) -> int:
        with self._timed('size'):
            written = self._written(pieces)
            return 8 * len(self.archive(written, self._planned, self._rate(written)).to_bytes())

    def _start(self, traits: Mapping[str, _Traits], steps: Mapping[str, float], wanted: float) -> float:
        """A first guess of the scale: as if the weights were Gaussian."""
        scale = 1.0
        for _ in range(40):
            rate = sum(
                math.prod(view.shape)
                * 0.5
                * math.log2(1 + 17 * (traits[view.name].spread / (scale * steps[view.name])) ** 2)
                for view in self.views
            )
            scale *= 2 ** ((rate - wanted) / self.elements)
        return min(max(scale, 1e-3), COARSEST)

    def _wanted_bits(self) -> float:
        settings = self.settings
        return target_bits(_numel(self.state_dict), self.elements, settings.ratio, settings.bits, settings.size)

    def _search_bytes(self, solve: Callable[[float], Pieces], wanted: float, start: float) -> tuple[float, Pieces]:
        """The scale whose whole file has at most the bits that are wanted.

        Raises:
            RiemError: what stays dense has no room, or no step gives so small a file.
        """
        self.limit = wanted
        rest = self._rest_bits(wanted)
        excess, found = 0.0, None

        def measure(pieces: Pieces) -> float:
            weights = sum(_cost(view, pieces[view.name].encoded) for view in self.views)
            return weights + rest + excess

        for _ in range(4):  # what the records take is known once they are written
            if wanted <= rest + excess:
                raise RiemError(
                    f'budget: expected room for the {(rest + excess) / 8:.0f} bytes of what stays dense and of the '
                    f'records, found {wanted / 8:.0f} bytes for the whole file; ask for a larger '
                    'ratio or more bits, or compress more of the weights'
                )
            scale, pieces = search(solve, measure, wanted, start)
            written = self._file_bits(pieces)
            if written <= wanted:
                found = scale, pieces
                if written >= CLOSE_ENOUGH * wanted:
                    break
            excess += written - measure(pieces)
            start = scale
        if found is None:
            raise RiemError(f'budget: expected a file of {wanted / 8:.0f} bytes, found none of a step; ask for more')
        return found

    def _rest_bits(self, wanted: float) -> int:
        """Bits of a file with everything but the weights, where the whole is to have those that are wanted."""
        covered = {key for view in self.views for key in (view.name, *view.aliases)}
        rest = {key: tensor for key, tensor in self._planned.items() if key not in covered}
        return 8 * len(self.archive({}, rest, wanted / self.elements).to_bytes())

    def _plan(self) -> list[Plan]:
        wanted = self._wanted_bits()
        rest = self._rest_bits(wanted)
        if wanted <= rest:
            raise RiemError(
                f'budget: expected room for the {rest // 8} bytes of what stays dense, found {wanted / 8:.0f} bytes '
                'for the whole file; ask for a larger ratio or more bits, or compress more of the weights'
            )
        representation = get_representation(self.settings.representation)
        options = self.settings.state_options
        dense_bits = {view.name: 8 * store(view.name, self.state_dict[view.name]).layout.n_bytes for view in self.views}
        return allocate(self.views, representation, wanted - rest, options, dense_bits)

    def _fit(self, plan: Plan, progress: Callable[[float], None]) -> Piece:
        started = time.thread_time()
        encoded = None
        if plan.settings is not None:
            encoded = self._represent(self.settings.representation, plan.view, plan.settings, progress)
        piece = Piece.whole(plan.view, self.state_dict[plan.view.name], encoded, None, 0.0)
        return replace(piece, seconds=time.thread_time() - started)

    def _represent(
        self, name: str, view: WeightView, settings: dict[str, Any], progress: Callable[[float], None] | None
    ) -> Representation:
        metric = self._metric(view.name)
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

    def _choose(self, view: WeightView, piece: Piece, progress: Callable[[float], None]) -> Piece:
        if piece.encoded is None:
            return piece
        started = time.thread_time()
        others = [name for name in representation_names() if name != Lattice.name]
        best: Representation = unpacked(piece.encoded)
        distortion = piece.distortion
        for number, name in enumerate(others):
            progress(number / len(others))
            kind = get_representation(name)
            options = self.settings.state_options
            settings = kind.configure(view.matrix_shape, best.payload_bits(), **options)
            if settings is None:
                continue
            other = self._represent(
                name, view, settings, lambda share, number=number: progress((number + share) / len(others))
            )
            if other.payload_bits() <= best.payload_bits():
                its_distortion = self._distortion(view, other.decode())
                if its_distortion < distortion:
                    best, distortion = other, its_distortion
        chosen = Piece.whole(view, self.state_dict[view.name], best, distortion, 0.0)
        return replace(chosen, seconds=time.thread_time() - started)

    def _distortion(self, view: WeightView, decoded: Tensor) -> float:
        """In the units of the lattice's own."""
        metric = self._metric(view.name)
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
        'tune': 0.3 * (settings.tuning or 0) * has_images,
    }
    stages, done, total = {}, 0, sum(efforts.values())
    for name, effort in efforts.items():
        stages[name] = (done / total, (done + effort) / total)
        done += effort
    return stages


def _trainable(model: nn.Module, settings: Settings) -> tuple[str, ...]:
    """Norms and biases that are parameters."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return tuple(key for key in find_vectors(model, settings.include, settings.exclude) if key in parameters)


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
    if not tensor.half().any():
        return torch.zeros_like(tensor)  # not of either sign: a constant takes no bytes
    limit = torch.finfo(torch.float16).max
    return tensor.clamp(-limit, limit).half().to(tensor.dtype)


def _as_if_changed(state_dict: Mapping[str, Tensor], keys: set[str]) -> dict[str, Tensor]:
    """The state dict with noise added to constants of these keys, which will change: as they are they take no bytes."""
    generator = torch.Generator().manual_seed(0)
    noise: dict[int, Tensor] = {}
    for key, tensor in state_dict.items():
        if key in keys and derive(key, tensor):
            spread = torch.where(tensor == 0, 1.0, RECALIBRATED_SHARE * tensor.abs().double())
            random = tensor + spread * torch.randn(tensor.shape, generator=generator)
            noise.setdefault(tensor.data_ptr(), random.half().to(tensor.dtype))
    return {key: noise.get(tensor.data_ptr(), tensor) for key, tensor in state_dict.items()}


def _numel(state_dict: Mapping[str, Tensor]) -> int:
    """Floating elements of a state dict, shared ones counted once: what an fp32 checkpoint holds."""
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point()}
    return sum(distinct.values())


def layer_cost(view: WeightView, settings: Settings) -> float:
    """Predicted CPU seconds of a weight: by these, weights are shared out to processes.

    Measured on a core of an AMD EPYC; another one only scales them. Two turns of a search.
    """
    rows, columns = view.matrix_shape
    fit = 1e-4 * rows * columns
    if not settings.has_lattices:
        return fit
    widths = [part.stop - part.start for part in parts(columns)]
    factor = 3e-11 * sum(width**3 for width in widths)
    cancel = 5e-11 * sum(rows * width**2 for width in widths) + 2.4e-7 * rows * columns + 4e-5 * columns + 0.012
    return factor + cancel + (fit if settings.representation == AUTO else 0.0)


def _report(archive: Archive, model: nn.Module, pieces: Pieces, job: _Job) -> dict[str, Any]:
    """Per weight: shape, representation, bits, errors, seconds; and totals. Sizes in bytes."""
    size = len(archive.to_bytes())
    numel = _numel(job.state_dict)
    represented = sum(math.prod(view.shape) for view in job.views if pieces[view.name].encoded is not None)
    distortions = [
        piece.distortion for name, piece in pieces.items() if piece.distortion is not None and name in job.sources
    ]
    weights = []
    for view in every_weight(model):
        tensor = job.state_dict[view.name]
        piece = pieces.get(view.name) or Piece.whole(view, tensor, None, None, 0.0)
        weights.append(_entry(view, piece, job))
    return {
        'settings': job.recorded,
        'weights': weights,
        'totals': {
            'bytes_fp32': 4 * numel,
            'bytes_fp16': 2 * numel,
            'bytes': size,
            'ratio': size / (4 * numel),
            'bits_per_weight': 8 * size / job.elements,
            'weights': len(pieces),
            'represented_elements': represented,
            'other_elements': numel - represented,
            'scale': job.scale,
            'tuning': None if job.tuned is None else {**vars(job.tuned), 'kept': job.tuned.kept},
            'predicted_error': math.sqrt(sum(distortions)) if distortions else None,
            'seconds': sum(entry['seconds'] for entry in weights),
            'stages': {stage: round(seconds, 3) for stage, seconds in job.stage_seconds.items()},
            'turns': job.turns,
            'processes': job.executor.workers.size,
            'threads': job.executor.threads,
        },
    }


def _entry(view: WeightView, piece: Piece, job: _Job) -> dict[str, Any]:
    bits = job.bits(view, piece)
    seconds = job.seconds.get(view.name, {})
    return {
        'name': view.name,
        'aliases': list(view.aliases),
        'shape': list(view.shape),
        'representation': piece.encoded.name if piece.encoded is not None else 'dense',
        'settings': piece.encoded.settings() if piece.encoded is not None else {},
        'metric': job.sources.get(view.name, 'identity'),
        'bits': bits,
        'bits_per_weight': bits / math.prod(view.shape),
        'relative_error': piece.relative_error,
        'snr_db': piece.snr_db,
        'distortion': piece.distortion,
        'seconds': round(sum(seconds.values()), 3),
        'seconds_of_stage': {stage: round(its, 3) for stage, its in seconds.items()},
        'predicted_seconds': job.costs.get(view.name),
    }
