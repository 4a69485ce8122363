"""The pullback metric: what an error of a weight does to the outputs of the network.

For a small error ``dW`` of the weight matrix of one layer, the squared relative error of the network's outputs,
averaged over its output tensors, is to first order

    sum_i g_i dw_i^T A dw_i

``A`` is the second moment of the layer's inputs ``x`` (im2col columns), each weighted by the energy ``|G|^2`` of the
gradient at its position of a random projection of the outputs, because an error matters where the outputs depend on it.
This takes errors at different positions as uncorrelated (Grosse and Martens, "A Kronecker-factored approximate Fisher
matrix for convolution layers", 2016). How much a row matters is measured without that: ``g_i tr(A)`` is the mean square
of the gradient of the row's weights, exact for white errors. Where features are averaged over positions, errors add up,
and the difference is tenfold.

Inputs are seen where the network calls ``linear`` and the convolutions, however often and by whatever module. A
parameter that is used in another way (a table of position biases, a deformable convolution) has a diagonal metric
from the gradients of its own elements.
"""

from __future__ import annotations

import copy
import inspect
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .parallel import Crew, Task, run_all
from .probe import Probe
from .representation import Progress
from .surgery import WeightView
from .workers import join, split

POSITIONS = 4096
"""Inputs ``x`` of one call of a layer on one batch that enter the sum; more are sampled."""
LANES = 2
"""Sums that are added up side by side, whatever the number of threads, so that their rounding is always the same."""
MAX_COLUMNS = 6144
"""Widest block of the metric: correlations between columns of different blocks are left out."""


@dataclass(frozen=True, eq=False)
class Metric:
    """The pullback metric of one weight matrix ``(out, in)``.

    Attributes:
        blocks: ``A`` as diagonal blocks over consecutive columns, each ``(groups, b, b)`` float32, ``b`` summing up to
            ``in``; rows ``k * out / groups`` to ``(k + 1) * out / groups`` have the ``A`` of group ``k``.
        output_weights: ``g`` ``(out,)`` float64.
        source: ``inputs``, or ``gradients`` where the layer's inputs could not be seen.
    """

    blocks: tuple[Tensor, ...]
    output_weights: Tensor
    source: str

    @property
    def groups(self) -> int:
        """Number of groups of rows with a metric of their own."""
        return self.blocks[0].shape[0]

    def dense(self) -> Tensor:
        """One ``A`` for all rows, ``(in, in)``: the mean over the groups."""
        return torch.block_diag(*(block.mean(0) for block in self.blocks))

    def to_bytes(self) -> bytes:
        """For a journal."""
        return _pack(self.blocks, self.source, output_weights=self.output_weights)

    @classmethod
    def from_bytes(cls, data: bytes) -> Metric:
        """Inverse of :meth:`to_bytes`."""
        blocks, source, others = _unpack(data)
        return cls(tuple(blocks), others['output_weights'], source)


def collect(
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    *,
    threads: int = 1,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Metric]:
    """The pullback metric of each weight that the outputs depend on, by name; others are left out.

    The model is not changed. The result depends on the seed, not on ``threads``.
    """
    return dict(each_metric(model, views, probe, Crew(threads), seed=seed, on_progress=on_progress))


def each_metric(
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    crew: Crew,
    owners: Sequence[int] | None = None,
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[str, Metric]]:
    """As :func:`collect`, of several processes: names and metrics of the weights that this one owns, one by one.

    Each lane is the work of one process, so more than ``LANES`` of them do not run faster.

    Args:
        owners: rank of the process that gets the metric of each weight; None is this one.
    """
    batches = list(enumerate(probe.batches()))
    lanes = [batches[lane::LANES] for lane in range(min(LANES, len(batches)))]
    workers = crew.workers

    def work(lane: list[tuple[int, tuple[int, int]]], progress: Progress) -> dict[str, _Sums]:
        own, sums = _frozen_copy(model), {}
        for done, (number, batch) in enumerate(lane, 1):
            _add_batch(sums, own, views, probe, batch, ((seed << 20) + number) % (1 << 63))
            progress(done / len(lane))
        return sums

    tasks = [
        Task('images', len(lane), lambda progress, lane=lane: work(lane, progress))
        for lane in lanes[workers.rank :: workers.size]
    ]
    found = run_all(tasks, crew.threads, on_progress and (lambda share, _: on_progress(share)))
    for view, owner in zip(views, owners or [workers.rank] * len(views)):
        sums = [lane.pop(view.name, None) for lane in found]
        if workers.size > 1:
            sent = workers.gather(join(part.to_bytes() if part else b'' for part in sums), owner)
            if owner != workers.rank:
                continue
            parts = [split(part) for part in sent]
            packed = [parts[lane % workers.size][lane // workers.size] for lane in range(len(lanes))]
            sums = [_Sums.from_bytes(part) if part else None for part in packed]
        total = None
        for part in filter(None, sums):
            total = part if total is None else total.add(part)
        if total is not None and _is_reached(total):
            yield view.name, total.metric(probe.images)


def _frozen_copy(model: nn.Module) -> nn.Module:
    return without_checkpoints(copy.deepcopy(model)).eval().requires_grad_(False)


def without_checkpoints(model: nn.Module) -> nn.Module:
    """The model, no part of which runs again, unseen, in the backward pass."""
    for module in model.modules():
        if getattr(module, 'with_cp', False):
            module.with_cp = False
    return model


def _is_reached(sums: _Sums) -> bool:
    return sums.energy > 0 and float(sums.rows.sum()) > 0


@dataclass
class _Sums:
    """Sums over images: of weighted second moments, of squared gradients of each row, and of the weights."""

    blocks: list[Tensor]
    rows: Tensor
    energy: float
    source: str

    @classmethod
    def empty(cls, view: WeightView, groups: int, source: str = 'inputs') -> _Sums:
        rows, columns = view.matrix_shape
        widths = [part.stop - part.start for part in parts(columns)]
        blocks = [torch.zeros(groups, width, width) for width in widths]
        return cls(blocks, torch.zeros(rows, dtype=torch.float64), 0.0, source)

    def add(self, other: _Sums) -> _Sums:
        for mine, its in zip(self.blocks, other.blocks):
            mine += its
        self.rows += other.rows
        self.energy += other.energy
        return self

    def to_bytes(self) -> bytes:
        """For another process."""
        energy = torch.tensor(self.energy, dtype=torch.float64)
        return _pack(self.blocks, self.source, rows=self.rows, energy=energy)

    @classmethod
    def from_bytes(cls, data: bytes) -> _Sums:
        blocks, source, others = _unpack(data)
        return cls(blocks, others['rows'], float(others['energy']), source)

    def metric(self, images: int) -> Metric:
        blocks = tuple(block.div_(self.energy) for block in self.blocks)
        traces = sum(block.diagonal(dim1=1, dim2=2).double().sum(1) for block in blocks)
        per_group = self.rows.reshape(len(traces), -1) / images
        output_weights = per_group / traces.clamp_min(1e-300)[:, None]
        return Metric(blocks, output_weights.reshape(-1), self.source)


def _pack(blocks: Sequence[Tensor], source: str, **others: Tensor) -> bytes:
    named = {f'block {number}': block for number, block in enumerate(blocks)}
    return safetensors.torch.save({**named, **others, f'source {source}': torch.zeros(0)})


def _unpack(data: bytes) -> tuple[list[Tensor], str, dict[str, Tensor]]:
    others = safetensors.torch.load(data)
    (source,) = (name for name in others if name.startswith('source '))
    blocks = [others.pop(f'block {number}') for number in range(sum(name.startswith('block ') for name in others))]
    return blocks, source.removeprefix('source '), others


def _add_batch(
    sums: dict[str, _Sums],
    model: nn.Module,
    views: Sequence[WeightView],
    probe: Probe,
    batch: tuple[int, int],
    seed: int,
) -> None:
    watch = _Watch(sums, model, views, seed)
    with torch.enable_grad():
        with watch:
            outputs = [output for output in probe.run(model, *batch) if output.requires_grad]
        if outputs:
            _random_projection(outputs, batch, seed).backward()
    watch.finish()


def _random_projection(outputs: Sequence[Tensor], batch: tuple[int, int], seed: int) -> Tensor:
    """Of the relative outputs: the mean over the signs of its squared gradient is that of the relative error."""
    generator = torch.Generator().manual_seed(seed)
    total = outputs[0].new_zeros(())
    for output in outputs:
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
        share = (batch[1] - batch[0]) / len(outputs) / output.numel()
        scale = output.detach().std().clamp_min(1e-6) / share**0.5
        total = total + (signs * output).sum() / scale
    return total


class _Watch(TorchFunctionMode):
    """Sees the calls of linear and convolution functions with the weights, and the gradients at their outputs."""

    def __init__(self, sums: dict[str, _Sums], model: nn.Module, views: Sequence[WeightView], seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._sums = sums
        self._calls: dict[str, int] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._parameters = {view.name: parameters[view.name] for view in views}
        self._views = {self._parameters[view.name].untyped_storage().data_ptr(): view for view in views}
        self._view_by_name = {view.name: view for view in views}
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.multi_head_attention_forward:
            return self._attention(dict(zip(_ATTENTION, args), **kwargs))
        if function not in _CALLS:
            return function(*args, **kwargs)
        call = dict(zip(_CALLS[function], args), **kwargs)
        view = self._views.get(call['weight'].untyped_storage().data_ptr())
        if view is None:
            return function(*args, **kwargs)
        output = function(**call)
        if output._is_view():
            output = output.clone()  # an in-place activation takes the hook from a view
        if output.numel():
            self._see(view, function, call, output)
        return output

    def _attention(self, call: dict[str, Any]) -> Any:
        """Attention whose projections are calls of their own, so that their inputs can be seen."""
        names = ('q_proj_weight', 'k_proj_weight', 'v_proj_weight')
        packed, bias = call['in_proj_weight'], call['in_proj_bias']
        weights = packed.chunk(3) if packed is not None else [call[name] for name in names]
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        with self:
            projected = [
                F.linear(call[name], weight, bias)
                for name, weight, bias in zip(('query', 'key', 'value'), weights, biases)
            ]
        identity = torch.eye(len(call['out_proj_weight'])).to(projected[0])
        call.update(zip(('query', 'key', 'value'), projected))
        call.update(in_proj_weight=identity.repeat(3, 1), in_proj_bias=None, use_separate_proj_weight=False)
        out_weight, out_bias = call['out_proj_weight'], call['out_proj_bias']
        heads, attention = F.multi_head_attention_forward(
            **{**call, 'out_proj_weight': identity, 'out_proj_bias': None, **dict.fromkeys(names)}
        )
        with self:
            return F.linear(heads, out_weight, out_bias), attention

    def _see(self, view: WeightView, function: Callable, call: dict[str, Any], output: Tensor) -> None:
        number = self._calls[view.name] = self._calls.get(view.name, -1) + 1
        generator = torch.Generator().manual_seed(zlib.crc32(f'{view.name} {number} {self._seed}'.encode()))
        see = {F.linear: _linear_columns, F.conv2d: _columns, F.conv_transpose2d: _transposed_columns}[function]
        shape = output.shape

        def receive(gradient: Tensor) -> None:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                inputs, at, share = see(call, shape, generator)
                self._add(view, function, inputs, at(gradient), share, call)

        output.register_hook(receive)

    def _add(
        self,
        view: WeightView,
        function: Callable,
        inputs: Tensor,
        gradient: Tensor,
        share: float,
        call: dict[str, Any],
    ) -> None:
        """Add up inputs ``(groups, positions, in)`` and gradients ``(positions, out)``, a ``share`` of all."""
        energy = gradient.double().square().sum(1) * share
        weighted = inputs * energy.to(inputs)[:, None]
        if view.name not in self._sums:
            self._sums[view.name] = _Sums.empty(view, inputs.shape[0])
        sums = self._sums[view.name]
        sums.energy += float(energy.sum())
        if function is F.conv_transpose2d:  # each tap of the kernel has its own output pixels
            taps, stride = call['weight'][0, 0], call.get('stride', 1)
            every = torch.eye(taps.numel()).to(inputs) / math.prod(_pair(stride))
            block = torch.bmm(weighted.transpose(1, 2), inputs)
            whole = torch.stack([torch.kron(group, every) for group in block]).cpu()
            for mine, part in zip(sums.blocks, parts(whole.shape[2])):
                mine += whole[:, part, part]
            return
        for mine, part in zip(sums.blocks, parts(inputs.shape[2])):
            mine += torch.bmm(weighted[..., part].transpose(1, 2), inputs[..., part]).cpu()

    def finish(self) -> None:
        """Add the gradients of the weights; one used in ways unknown here has its metric from them alone."""
        for name, parameter in self._parameters.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            view = self._view_by_name[name]
            squared = view.to_matrix(gradient).double().square().cpu()
            if name not in self._calls:
                sums = self._sums.setdefault(name, _Sums.empty(view, 1, 'gradients'))
                columns = squared.sum(0).float()
                for mine, part in zip(sums.blocks, parts(len(columns))):
                    mine += torch.diag(columns[part])
                sums.energy += float(squared.sum())
            if name in self._sums:
                self._sums[name].rows += squared.sum(1)


def parts(columns: int) -> list[slice]:
    """Consecutive columns of each block of the metric, as equal as can be, at most ``MAX_COLUMNS``.

    >>> parts(3)
    [slice(0, 3, None)]
    """
    count = -(-columns // MAX_COLUMNS)
    width = -(-columns // count)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


_CALLS = {
    F.linear: ('input', 'weight', 'bias'),
    F.conv2d: ('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'),
    F.conv_transpose2d: (
        'input', 'weight', 'bias', 'stride', 'padding', 'output_padding', 'groups', 'dilation',
    ),
}  # fmt: skip
_ATTENTION = tuple(inspect.signature(F.multi_head_attention_forward).parameters)

_Seen = tuple[Tensor, Callable[[Tensor], Tensor], float]
"""Inputs ``(groups, positions, in)``; the gradient ``(positions, out)`` there; all positions by those chosen."""


def _choose(positions: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, float]:
    if positions <= POSITIONS:
        return torch.arange(positions, device=device), 1.0
    return torch.randperm(positions, generator=generator)[:POSITIONS].to(device), positions / POSITIONS


def _linear_columns(call: dict[str, Any], shape: torch.Size, generator: torch.Generator) -> _Seen:
    inputs = call['input'].detach().reshape(-1, call['input'].shape[-1])
    chosen, share = _choose(len(inputs), generator, inputs.device)
    return inputs[chosen][None], lambda gradient: gradient.reshape(-1, gradient.shape[-1])[chosen], share


def _columns(call: dict[str, Any], shape: torch.Size, generator: torch.Generator) -> _Seen:
    """The im2col columns at some output positions of a convolution."""
    inputs, (high, wide) = call['input'].detach(), call['weight'].shape[2:]
    stride, dilation = _pair(call.get('stride', 1)), _pair(call.get('dilation', 1))
    padding, groups = call.get('padding', 0), call.get('groups', 1)
    if padding == 'same':
        total = [dilation[axis] * (size - 1) for axis, size in enumerate((high, wide))]
        inputs = F.pad(inputs, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    elif padding != 'valid':
        top, left = _pair(padding)
        inputs = F.pad(inputs, (left, left, top, top))
    rows, columns = shape[2:]
    chosen, share = _choose(shape[0] * rows * columns, generator, inputs.device)
    image, place = chosen // (rows * columns), chosen % (rows * columns)
    y = (place // columns * stride[0])[:, None, None] + torch.arange(high, device=chosen.device)[:, None] * dilation[0]
    x = (place % columns * stride[1])[:, None, None] + torch.arange(wide, device=chosen.device) * dilation[1]
    taken = inputs.permute(0, 2, 3, 1)[image[:, None, None], y, x]  # (positions, high, wide, channels)
    taken = taken.permute(3, 1, 2, 0).reshape(groups, -1, len(chosen)).transpose(1, 2)
    return taken, lambda gradient: gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])[chosen], share


def _transposed_columns(call: dict[str, Any], shape: torch.Size, generator: torch.Generator) -> _Seen:
    """The inputs of a transposed convolution; gradients are the mean over the output pixels of an input pixel."""
    inputs, groups = call['input'].detach(), call.get('groups', 1)
    size = inputs.shape[2:]
    flat = inputs.permute(1, 0, 2, 3).reshape(groups, inputs.shape[1] // groups, -1).transpose(1, 2)
    chosen, share = _choose(flat.shape[1], generator, inputs.device)
    pixels = shape[2] * shape[3] / (size[0] * size[1])

    def at(gradient: Tensor) -> Tensor:
        mean_square = F.interpolate(gradient.square(), size=size, mode='area') * pixels
        return mean_square.sqrt().permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])[chosen]

    return flat[:, chosen], at, share


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
