"""Modules that hold states instead of weights and regenerate a weight when it is used.

A live module is an ordinary one (``nn.Conv2d``, ``nn.Linear``, anything with parameters) some of whose
parameters are replaced by :class:`WeightStates`. Its code still reads ``self.weight``. In the state dict
``conv.weight`` becomes ``conv.riem.weight.q``, ``conv.riem.weight.p`` and so on; every other key stays as it
was. Loading the tensors of a ``.riem`` file under their ordinary keys fills the states.

What holds on to the parameters of a model (an optimizer, an averaged copy, MMEngine's log of the
initialisation) often takes them before a checkpoint is loaded, whose states may have other names and sizes.
So a weight has one parameter, for good: a flat vector of all its states.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .container import WeightRecord
from .errors import RiemError
from .quantise import STATE_BITS
from .representation import Representation, get_representation, representation_names
from .surgery import WeightView, find_weights, parameter_owners

STATES = 'riem'
"""Name of the submodule of a live module that holds the states of its weights."""
DENSE = 'dense'
"""Name of the one state of a weight that is held as it is, because a file keeps it so or it is too small."""
MIN_SPREAD = 1e-6
"""Least standard deviation of a weight from fresh states: states of zeros would have no gradient."""


class WeightStates(nn.Module):
    """The states of one weight, trainable; calling it regenerates the weight.

    In eval mode without gradients the weight is regenerated once and kept until the states change, the mode
    is set or the module moves. Writes through ``.data`` go unnoticed in between: call ``eval()`` after them.

    Attributes:
        view: the weight.
        values: the one parameter, ``(number of values,)`` float32, also in a half-precision model.
        dtype: dtype of the regenerated weight; follows ``half()`` and the like.

    Args:
        view: the weight.
        representation: name of the representation of fresh states.
        settings: of the representation, as :meth:`Representation.configure` makes them; None: hold it dense.
    """

    def __init__(self, view: WeightView, representation: str, settings: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.view = view
        self.dtype = view.dtype
        self.values = nn.Parameter(torch.empty(0))
        self._fresh = (get_representation(representation), settings)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept: tuple[tuple[int, ...], Tensor] | None = None
        self._draft: tuple[Tensor, Tensor] | None = None
        self._resized = False

    def forward(self) -> Tensor:
        """The weight in the shape of the parameter.

        Raises:
            RiemError: the states were resized after DistributedDataParallel took hold of them.
        """
        if self._draft is not None:
            return self._draft[0]
        differentiable = torch.is_grad_enabled() and self.values.requires_grad
        if differentiable and self._resized:
            self._require_new_gradient()
        if self.training or differentiable:
            return self._weight(self.states())
        if self._kept is None or self._kept[0] != self._versions(self._kept[1]):
            with torch.inference_mode(False), torch.no_grad():  # fit for training too
                weight = self._weight(self.states())
            self._kept = (self._versions(weight), weight)
        return self._kept[1]

    def states(self) -> dict[str, Tensor]:
        """The states by name, as views on :attr:`values`."""
        parts = self.values.split([math.prod(shape) for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts)}

    @torch.no_grad()
    def reset(self, states: Mapping[str, Tensor]) -> None:
        """Hold these states instead; names and sizes may differ from the present ones.

        Raises:
            RiemError: no representation has states of these names.
        """
        kind = representation_of(states)
        ordered = {name: states[name] for name in (kind.state_names if kind else [DENSE])}
        flat = torch.cat([value.detach().reshape(-1).float() for value in ordered.values()])
        if flat.numel() == self.values.numel():
            self.values.copy_(flat)
        else:
            self.values.data, self.values.grad = flat.to(self.values.device), None
            self._resized = True
        self._shapes = {name: tuple(value.shape) for name, value in ordered.items()}
        self._kept = self._draft = None

    def initialise(self, weight: Tensor) -> None:
        """Hold random states of a weight with the mean and spread of ``weight``; if dense, that itself."""
        kind, settings = self._fresh
        if settings is None:
            self.reset({DENSE: weight})
            return
        with torch.no_grad():
            drawn = kind.random_states(self.view.matrix_shape, dict(settings))
            current, wanted = kind.regenerate(drawn), self.view.to_matrix(weight)
            spread = max(float(wanted.std(unbiased=False)), MIN_SPREAD)
            gain = spread / max(float(current.std(unbiased=False)), 1e-12)
            shift = float(wanted.mean()) - gain * float(current.mean())
            self.reset(kind.scaled_states(drawn, gain, shift))

    def begin_draft(self) -> bool:
        """From now on give out one dense weight that may be written to; False where that is so already."""
        if self._draft is not None:
            return False
        with torch.no_grad():
            weight = self._weight(self.states()).clone()
        self._draft = (weight, weight.clone())
        return True

    def end_draft(self) -> None:
        """Regenerate the weight again; from fresh states if the draft was written to."""
        if self._draft is None:  # states were loaded meanwhile
            return
        weight, before = self._draft
        self._draft = None
        if not torch.equal(weight, before):
            self.initialise(weight)

    def train(self, mode: bool = True) -> WeightStates:
        """Also forgets the kept weight."""
        self._kept = None
        return super().train(mode)

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        kind = representation_of(self._shapes)
        states = ', '.join(f'{name}={shape}' for name, shape in self._shapes.items())
        return f'{self.view.shape}, {kind.name}: {states}' if kind else f'{self.view.shape}, dense'

    def _versions(self, weight: Tensor) -> tuple[int, ...]:
        """Other numbers after every write to the states or to the weight that was made of them."""
        return self.values.data_ptr(), self.values._version, weight._version

    def _weight(self, states: Mapping[str, Tensor]) -> Tensor:
        kind = representation_of(states)
        if kind is None:
            weight = states[DENSE]
        else:
            with torch.autocast(self.values.device.type, enabled=False):
                weight = self.view.from_matrix(kind.regenerate(dict(states)))
        return weight.to(self.dtype)

    def _require_new_gradient(self) -> None:
        """Whoever took the parameter before it was resized may expect gradients of the old size."""
        try:
            torch.autograd.grad(self.values.sum(), self.values)
        except RuntimeError as error:
            raise RiemError(
                f'weight {self.view.name!r}: expected as many states as the model had when it was wrapped '
                f'for distributed training, found {self.values.numel()} from a checkpoint loaded later; '
                "name the .riem file in the config, riem=dict(checkpoint='x.riem', prefix='backbone.')"
            ) from error
        self._resized = False

    def _apply(self, fn: Any, recurse: bool = True) -> WeightStates:
        """The states keep their precision; only the regenerated weight takes another one."""
        self.dtype = fn(torch.empty(1, dtype=self.dtype, device=self.values.device)).dtype
        self._kept = None

        def placed(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            return converted if converted.dtype == tensor.dtype else tensor.to(converted.device)

        return super()._apply(placed, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, value in self.states().items():
            destination[prefix + name] = value if keep_vars else value.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take over states of whatever kind and size, if they regenerate a weight of the right shape."""
        found = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if not found:
            missing_keys.extend(prefix + name for name in self._shapes)
            return
        try:
            if {name: tuple(value.shape) for name, value in found.items()} != self._shapes:
                self._check(found)
            self.reset(found)
        except RiemError as error:
            error_msgs.append(f'{prefix[:-1]}: {error}')

    @torch.no_grad()
    def _check(self, states: Mapping[str, Tensor]) -> None:
        sizes = ', '.join(f'{name} {tuple(value.shape)}' for name, value in states.items())
        kind = representation_of(states)
        try:
            found = tuple(states[DENSE].shape if kind is None else kind.regenerate(_as_float(states)).shape)
        except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
            raise RiemError(f'expected states that belong together, found {sizes}') from error
        expected = self.view.shape if kind is None else self.view.matrix_shape
        if found != expected:
            raise RiemError(f'expected states of a weight {expected}, found those of one {found}: {sizes}')

    def __getstate__(self) -> dict[str, Any]:
        """A copy regenerates its weight itself."""
        return {**self.__dict__, '_kept': None, '_draft': None}


def _as_float(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in states.items()}


def representation_of(names: Mapping[str, Any]) -> type[Representation] | None:
    """The representation that has states of these names; None for a dense weight.

    Raises:
        RiemError: no representation has.
    """
    if set(names) == {DENSE}:
        return None
    for name in representation_names():
        kind = get_representation(name)
        if set(kind.state_names) == set(names):
            return kind
    known = ', '.join(representation_names())
    raise RiemError(f'expected states of one of {known}, found {", ".join(sorted(names))}')


class LiveModule:
    """Mixin that makes parameters of a module out of states; mixed in before the module's own class."""

    _modules: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get('_modules', {}).get(STATES)
        if held is not None and name in held._modules:
            return held._modules[name]()
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A tensor that takes the place of a regenerated weight (fusing a norm does that) is held dense."""
        held = self.__dict__.get('_modules', {}).get(STATES)
        if held is not None and name in held._modules and isinstance(value, Tensor):
            held._modules[name].reset({DENSE: value})
        else:
            super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: int) -> Any:
        """Pickle by the module's own class: that of a live module is made when it is needed."""
        plain = type(self).__dict__.get('_plain')
        if plain is None:
            return super().__reduce_ex__(protocol)
        return _blank, (plain,), self.__dict__

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """While weights may be written to, they are in the state dict as well: initialisers look there."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for attribute, states in self._modules[STATES]._modules.items():
            if states._draft is not None:
                destination[prefix + attribute] = states()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take states from the records that the tensors of a ``.riem`` file carry.

        Raises:
            RiemError: a weight is a tensor without a record, as of an ordinary checkpoint.
        """
        for attribute, states in self._modules[STATES]._modules.items():
            if (key := prefix + attribute) not in state_dict:
                continue
            tensor = state_dict.pop(key)
            if tuple(tensor.shape) == states.view.shape:
                states.reset(_states_of(key, tensor))
            else:
                found = tuple(tensor.shape)
                error_msgs.append(f'size mismatch for {key}: expected {states.view.shape}, found {found}')
            for name, value in states.states().items():
                state_dict[f'{prefix}{STATES}.{attribute}.{name}'] = value
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _states_of(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """States of a tensor that was decoded from a ``.riem`` file; ``dense`` where the file keeps it so."""
    record = getattr(tensor, STATES, False)
    if record is None:
        return {DENSE: tensor}
    if not isinstance(record, WeightRecord):
        raise RiemError(
            f'{key}: expected states from a .riem file for a RieM module, found the weight of an ordinary '
            'checkpoint; compress that with its stock config (tools/compress.py) and load the .riem file'
        )
    return record.encoded.states()


@functools.cache
def live_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of live modules of a module class; the same one for each call.

    >>> live_class(nn.Conv2d).__name__, live_class(nn.Embedding).__name__
    ('RieMConv2d', 'RieMEmbedding')
    """
    if cls in _LAYERS:
        return _LAYERS[cls]
    if issubclass(cls, LiveModule):
        return cls
    name = cls.__name__ if cls.__name__.startswith('RieM') else f'RieM{cls.__name__}'
    body = {'_plain': cls, '__module__': cls.__module__, '__doc__': cls.__doc__}
    return type(cls)(name, (LiveModule, cls), body)


def _blank(plain: type[nn.Module]) -> nn.Module:
    cls = live_class(plain)
    return cls.__new__(cls)


def hold_states(
    module: nn.Module,
    attribute: str,
    view: WeightView,
    representation: str,
    settings: Mapping[str, Any] | None,
) -> WeightStates:
    """Replace one parameter of a module by states of its mean and spread; the module itself becomes live."""
    start = getattr(module, attribute)
    states = WeightStates(view, representation, settings).to(start.device)
    states.initialise(start)
    states.values.requires_grad_(start.requires_grad)
    _attach(module, attribute, states)
    return states


def _attach(module: nn.Module, attribute: str, states: WeightStates) -> None:
    del module._parameters[attribute]
    if STATES not in module._modules:
        module.add_module(STATES, nn.ModuleDict())
    module._modules[STATES].add_module(attribute, states.train(module.training))
    module.__class__ = live_class(type(module))


@contextmanager
def writable_weights(model: nn.Module) -> Iterator[None]:
    """Within, writes to a weight of a live module count, so that initialisers work on it as on any other.

    A weight that was written to gets fresh states of the same mean and spread at the end; elsewhere a write
    to a regenerated weight is lost. States that are loaded within stay.
    """
    found = [module for module in model.modules() if isinstance(module, WeightStates)]
    drafted = [states for states in found if states.begin_draft()]
    try:
        yield
    finally:
        for states in drafted:
            states.end_draft()


def make_live(
    model: nn.Module,
    *,
    representation: str = 'sigmoid',
    ratio: float = 0.19,
    state_bits: int = 0,
    include: Sequence[str] = ('*',),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Replace the weights of a model by states of the same mean and spread, in place.

    The states are fresh ones, to train from or to be filled from a ``.riem`` file, which brings its own sizes
    and representation of each weight. A weight too small for states of that ratio is held dense until then.

    Args:
        model: any module.
        representation: name of the representation.
        ratio: size of the states of each weight, quantised as in a file, to its fp32 values.
        state_bits: as in :class:`mmriem.core.compress.Settings`.
        include, exclude: glob patterns on state-dict keys.

    Returns:
        Keys of the weights that were replaced.

    Raises:
        RiemError: a pattern matches nothing, the representation is not known, or a number is out of range.

    >>> make_live(nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU()), representation='bilinear')
    ['0.weight']
    """
    kind = get_representation(representation)
    if not 0 < ratio <= 1:
        raise RiemError(f'ratio: expected a number above 0 and at most 1, found {ratio}')
    if state_bits and not STATE_BITS[0] <= state_bits <= STATE_BITS[1]:
        raise RiemError(f'state_bits: expected 0 (by the ratio) or 2 to 8, found {state_bits}')
    owners = {owner.name: owner for owner in parameter_owners(model)}
    views = find_weights(model, include, exclude)
    for view in views:
        bits = 32 * ratio * math.prod(view.shape)
        settings = kind.configure(view.matrix_shape, bits, state_bits=state_bits)
        first, *others = (owners[name] for name in (view.name, *view.aliases))
        states = hold_states(first.module, first.attribute, view, representation, settings)
        for other in others:
            if other.attribute in other.module._parameters:  # gone where the whole module is shared
                _attach(other.module, other.attribute, states)
    return [view.name for view in views]


class RieMConv2d(LiveModule, nn.Conv2d):
    """A convolution that holds states; arguments of ``nn.Conv2d``, and those of :func:`make_live` by keyword.

    Fresh weights have He's spread for a ReLU, as those of mmcv's ``ConvModule`` and mmdet's ResNet.

    >>> layer = RieMConv2d(32, 64, 3, padding=1, representation='bilinear', ratio=0.2)
    >>> sorted(layer.state_dict())
    ['bias', 'riem.weight.p', 'riem.weight.q']
    >>> layer(torch.zeros(1, 32, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        *args: Any,
        representation: str = 'sigmoid',
        ratio: float = 0.19,
        state_bits: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _own_states(self, representation, ratio, state_bits)

    def reset_parameters(self) -> None:
        """He's initialisation, no bias."""
        with writable_weights(self):
            nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RieMLinear(LiveModule, nn.Linear):
    """A linear layer that holds states; arguments of ``nn.Linear``, by keyword those of :func:`make_live`."""

    def __init__(
        self,
        *args: Any,
        representation: str = 'sigmoid',
        ratio: float = 0.19,
        state_bits: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _own_states(self, representation, ratio, state_bits)

    def reset_parameters(self) -> None:
        """The initialisation of ``nn.Linear``."""
        with writable_weights(self):
            super().reset_parameters()


def _own_states(layer: nn.Module, representation: str, ratio: float, state_bits: int) -> None:
    """Turn the layer's own weight into states; one below ``surgery.DEFAULT_MIN_NUMEL`` stays a parameter."""
    layer.add_module(STATES, nn.ModuleDict())
    make_live(layer, representation=representation, ratio=ratio, state_bits=state_bits)


_LAYERS = {nn.Conv2d: RieMConv2d, nn.Linear: RieMLinear}
