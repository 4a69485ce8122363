"""Sees the inputs of each weight and the gradients at its outputs while a network runs."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..weights.views import WeightView
from .gradients import keeps_copies
from .metric import MetricSums, parts

POSITIONS = 4096
"""Most inputs of one call of a layer on one batch that enter the metric; of more a sample does."""


class Watch(TorchFunctionMode):
    """Sees the calls of linear and convolution functions with the weights, and the gradients at their outputs."""

    def __init__(self, sums: dict[str, MetricSums], model: nn.Module, views: Sequence[WeightView], seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._sums = sums
        self._calls: dict[str, int] = {}
        self.unseen: set[str] = set()
        """Weights that were used where there are no gradients."""
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
        if not output.requires_grad:
            self.unseen.add(view.name)
            return output
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
        if keeps_copies():
            call = {**call, 'input': call['input'].detach().clone()}

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
        if view.name not in self._sums:
            self._sums[view.name] = MetricSums.empty(view, inputs.shape[0])
        sums = self._sums[view.name]
        inputs, energy = sums.weigh(inputs, energy)
        weighted = inputs * energy.to(inputs)[:, None]
        if function is F.conv_transpose2d:  # each position of the kernel has its own output pixels
            kernel, stride = call['weight'][0, 0], call.get('stride', 1)
            every = torch.eye(kernel.numel()).to(inputs) / math.prod(_pair(stride))
            block = torch.bmm(weighted.transpose(1, 2), inputs)
            whole = torch.stack([torch.kron(group, every) for group in block]).cpu()
            for mine, part in zip(sums.blocks, parts(whole.shape[2])):
                mine += whole[:, part, part]
            return
        sums.firsts += weighted.sum(1).cpu()
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
                sums = self._sums.setdefault(name, MetricSums.empty(view, 1, 'gradients'))
                columns = sums.weigh(torch.ones(1), squared.sum(0))[1].float()
                for mine, part in zip(sums.blocks, parts(len(columns))):
                    mine += torch.diag(columns[part])
            if name in self._sums:
                self._sums[name].rows += squared.sum(1)


_CALLS = {
    F.linear: ('input', 'weight', 'bias'),
    F.conv2d: ('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'),
    F.conv_transpose2d: (
        'input', 'weight', 'bias', 'stride', 'padding', 'output_padding', 'groups', 'dilation',
    ),
}  # fmt: skip
_ATTENTION = tuple(inspect.signature(F.multi_head_attention_forward).parameters)
_Seen = tuple[Tensor, Callable[[Tensor], Tensor], float]
"""What a call of a layer shows: inputs ``(groups, positions, in)``; the gradient ``(positions, out)`` there; how many
positions each of those that were chosen stands for."""


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
