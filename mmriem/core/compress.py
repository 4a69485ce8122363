"""The pipeline: find the weights of a module, allocate the budget, fit each weight, gather archive and report."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .budget import Plan, allocate, target_bits
from .container import Archive, WeightRecord
from .dense import store
from .errors import RiemError
from .manifest import Source
from .representation import Representation, get_representation
from .surgery import DEFAULT_MIN_NUMEL, WeightView, every_weight, find_weights

OnProgress = Callable[[float, str], None]
"""Called with the share of the work done, 0 to 1, and the name of the weight that it concerns."""


@dataclass(frozen=True)
class Settings:
    """How to compress.

    Attributes:
        representation: name of the representation.
        ratio: size of the file over the fp32 state dict; or
        bits: bits of the file for each represented weight.
        include, exclude: glob patterns on state-dict keys.
        min_numel: weights with fewer elements stay dense.
        state_bits: bits of a quantised state; 0 lets each weight's budget decide. The paper has 8.
        shifts: relative vectors of ``sigmoid``; the paper has 6.
        seeds: random starts of a fit, culled early.
        seed: the first of them.
        effort: scales the number of optimisation steps.
    """

    representation: str = 'sigmoid'
    ratio: float | None = None
    bits: float | None = None
    include: tuple[str, ...] = ('*',)
    exclude: tuple[str, ...] = ()
    min_numel: int = DEFAULT_MIN_NUMEL
    state_bits: int = 0
    shifts: int = 6
    seeds: int = 1
    seed: int = 0
    effort: float = 1.0

    def __post_init__(self) -> None:
        get_representation(self.representation)
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
    device: str = 'cpu',
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> Compressed:
    """Compress the weights of ``model``; everything else of its state dict stays dense or is derived.

    The result depends on the model and the settings only, not on ``threads``.

    Raises:
        RiemError: nothing to compress, a pattern without a match, a budget that is too small.
    """
    state_dict = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    views = find_weights(model, settings.include, settings.exclude, settings.min_numel)
    plans = _plan(state_dict, views, settings, dataset_meta, source)
    started = time.perf_counter()
    fits = _fit_all(state_dict, plans, settings, device, threads, on_progress)
    seconds = time.perf_counter() - started
    records = [fit.record for fit in fits if fit.record]
    archive = Archive.from_state_dict(
        state_dict, records, dataset_meta=dataset_meta, source=source, settings=_recorded(settings)
    )
    report = _report(archive, state_dict, fits, settings, seconds)
    report['weights'] = _with_the_others(report['weights'], model, state_dict)
    return Compressed(archive, report)


@dataclass(frozen=True)
class _Fitted:
    view: WeightView
    record: WeightRecord | None
    decoded: Tensor
    bits: int
    seconds: float


def _recorded(settings: Settings) -> dict[str, Any]:
    """The settings as the file holds them."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(settings).items()}
    return {key: value for key, value in values.items() if value is not None}


def _plan(
    state_dict: Mapping[str, Tensor],
    views: Sequence[WeightView],
    settings: Settings,
    dataset_meta: Mapping[str, Any],
    source: Source,
) -> list[Plan]:
    if not views:
        raise RiemError('nothing to compress: expected weights with two or more dimensions, found none that match')
    covered = {key for view in views for key in (view.name, *view.aliases)}
    rest = {key: tensor for key, tensor in state_dict.items() if key not in covered}
    frame = Archive.from_state_dict(
        rest, [], dataset_meta=dataset_meta, source=source, settings=_recorded(settings)
    ).to_bytes()
    weight_numel = sum(math.prod(view.shape) for view in views)
    wanted = target_bits(_numel(state_dict), weight_numel, settings.ratio, settings.bits)
    if wanted <= 8 * len(frame):
        raise RiemError(
            f'budget: expected room for the {len(frame)} bytes of what stays dense, found {wanted / 8:.0f} bytes '
            'for the whole file; ask for a larger ratio or more bits, or compress more of the weights'
        )
    representation = get_representation(settings.representation)
    options = {'state_bits': settings.state_bits, 'shifts': settings.shifts}
    return allocate(views, representation, wanted - 8 * len(frame), options)


def _numel(state_dict: Mapping[str, Tensor]) -> int:
    """Floating elements of a state dict, shared ones counted once: what an fp32 checkpoint holds."""
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point()}
    return sum(distinct.values())


def _fit_all(
    state_dict: Mapping[str, Tensor],
    plans: Sequence[Plan],
    settings: Settings,
    device: str,
    threads: int,
    on_progress: OnProgress | None,
) -> list[_Fitted]:
    """Fit every weight, the largest first, ``threads`` at a time; an exception in one stops the others."""
    work = {plan.view.name: math.prod(plan.view.shape) for plan in plans}
    shares = dict.fromkeys(work, 0.0)
    stop, lock = threading.Event(), threading.Lock()

    def advance(name: str, share: float) -> None:
        if stop.is_set():
            raise RiemError('stopped')
        with lock:
            shares[name] = share
            if on_progress:
                on_progress(sum(shares[key] * work[key] for key in work) / sum(work.values()), name)

    def run(plan: Plan) -> _Fitted:
        name = plan.view.name
        advance(name, 0.0)
        fitted = _fit(state_dict[name], plan, settings, device, lambda share: advance(name, 0.99 * share))
        advance(name, 1.0)
        return fitted

    ordered = sorted(plans, key=lambda plan: -work[plan.view.name])
    before = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {plan.view.name: pool.submit(run, plan) for plan in ordered}
        try:
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)
    return [futures[plan.view.name].result() for plan in plans]


def _fit(tensor: Tensor, plan: Plan, settings: Settings, device: str, progress: Callable[[float], None]) -> _Fitted:
    started = time.perf_counter()
    if plan.settings is None:
        return _keep_dense(plan.view, tensor)
    matrix = plan.view.to_matrix(tensor).to(device)
    try:
        encoded: Representation = get_representation(settings.representation).fit(
            matrix,
            plan.settings,
            seed=settings.seed,
            seeds=settings.seeds,
            effort=settings.effort,
            progress=progress,
        )
    except RiemError as error:
        raise RiemError(f'weight {plan.view.name!r}: {error}') from error
    record = WeightRecord(plan.view, encoded)
    decoded = record.decode()
    return _Fitted(plan.view, record, decoded, encoded.payload_bits(), time.perf_counter() - started)


def _keep_dense(view: WeightView, tensor: Tensor) -> _Fitted:
    stored = store(view.name, tensor)
    return _Fitted(view, None, stored.decode(), 8 * stored.layout.n_bytes, 0.0)


def _report(
    archive: Archive, state_dict: Mapping[str, Tensor], fits: Sequence[_Fitted], settings: Settings, seconds: float
) -> dict[str, Any]:
    """Per weight: shape, representation, bits, errors, seconds; and totals. Sizes in bytes."""
    size = len(archive.to_bytes())
    numel = _numel(state_dict)
    represented = sum(math.prod(fit.view.shape) for fit in fits if fit.record)
    return {
        'settings': _recorded(settings),
        'weights': [_entry(fit, state_dict[fit.view.name]) for fit in fits],
        'totals': {
            'bytes_fp32': 4 * numel,
            'bytes_fp16': 2 * numel,
            'bytes': size,
            'ratio': size / (4 * numel),
            'bits_per_weight': 8 * size / max(1, sum(math.prod(fit.view.shape) for fit in fits)),
            'weights': len(fits),
            'represented_elements': represented,
            'other_elements': numel - represented,
            'seconds': sum(fit.seconds for fit in fits),
            'wall_seconds': seconds,
        },
    }


def _with_the_others(
    entries: Sequence[dict[str, Any]], model: nn.Module, state_dict: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The entries, and those of the weights that were not to be compressed: too small, or left out by a pattern."""
    named = {entry['name']: entry for entry in entries}
    return [
        named.get(view.name) or _entry(_keep_dense(view, state_dict[view.name]), state_dict[view.name])
        for view in every_weight(model)
    ]


def _entry(fit: _Fitted, tensor: Tensor) -> dict[str, Any]:
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
        'bits': fit.bits,
        'bits_per_weight': fit.bits / weight.numel(),
        'relative_error': float(error.abs().mean()) / spread if spread else 0.0,
        'snr_db': 10 * math.log10(power / noise) if noise and power else None,
        'seconds': round(fit.seconds, 3),
    }
