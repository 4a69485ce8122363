"""Modules that hold states instead of weights and regenerate a weight when it is used.

A live module is an ordinary one (``nn.Conv2d``, ``nn.Linear``, anything with parameters) some of whose
parameters are replaced by :class:`WeightStates`. Its code still reads ``self.weight``. In the state dict
``conv.weight`` becomes ``conv.riem.weight.q``, ``conv.riem.weight.p`` and so on; every other key stays as it
was. Loading the tensors of a ``.riem`` file under their ordinary keys fills the states.

What holds on to the parameters of a model (an optimizer, an averaged copy, MMEngine's log of the
initialisation) often takes them before a checkpoint is loaded, whose states may have other names and sizes.
So a weight has one parameter, for good: a flat vector of all states that are trained.

States that are integers (those of a lattice) are either frozen, and training moves the other ones, or trained
straight through: the parameter holds real numbers, the weight is regenerated from the nearest integers, and the
gradient passes as if they had not been rounded; then the other states stay as they are.

The weights of an ordinary checkpoint are fitted when they are loaded.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .container import WeightRecord
from .errors import RiemError
from .matrix_free import Factor, State, UnmadeWeight
from .parallel import Task, one_thread, run_all
from .quantise import STATE_BITS
from .representation import Progress, Representation, get_representation, representation_names
from .surgery import WeightView, find_weights, parameter_owners

STATES = 'riem'
"""Name of the submodule of a live module that holds the states of its weights."""
DENSE = 'dense'
"""Name of the one state of a weight that is held as it is, because a file keeps it so or it is too small."""
FITTED = 'riem_fitted'
"""Attribute of a tensor of an ordinary checkpoint with the states that were fitted to it: it may be loaded again."""
FROZEN, STRAIGHT_THROUGH = INTEGERS = ('frozen', 'straight_through')
"""What training does with integer states."""
DEFAULT_RATIO = 0.19
WEIGHT_OPTIONS = ('representation', 'ratio', 'bits', 'state_bits', 'effort', 'integers', 'materialize')
"""Options of :func:`make_live` that concern each single weight."""
MIN_SPREAD = 1e-6
"""Least standard deviation of a weight from fresh states: states of zeros would have no gradient."""


class WeightStates(nn.Module):
    """The states of one weight, trainable; calling it regenerates the weight.

    In eval mode without gradients the weight is regenerated once and kept until the states change, the mode
    is set or the module moves. Writes through ``.data`` go unnoticed in between: call ``eval()`` after them.

    Where the weight is not to be materialised, it is applied as :mod:`mmriem.core.matrix_free` does it. Then states
    that are those of a file, or fresh, are held packed in eval mode: :attr:`values` and :attr:`fixed` are empty until
    the mode is set to training or a gradient is wanted.

    Attributes:
        view: the weight.
        values: the one parameter, ``(number of values,)`` float32, also in a half-precision model.
        fixed: buffer of the states that training leaves alone, ``(number of values,)`` float32.
        dtype: dtype of the regenerated weight; follows ``half()`` and the like.

    Args:
        view: the weight.
        representation: name of the representation of fresh states.
        settings: of the representation, as :meth:`Representation.configure` makes them; None: hold it dense.
        effort: of a fit, see :class:`Representation`.
        integers: ``frozen`` or ``straight_through``.
        materialize: False where only ``F.linear`` and ``F.conv2d`` read the weight, and shall not have it made.
    """

    def __init__(
        self,
        view: WeightView,
        representation: str,
        settings: Mapping[str, Any] | None,
        effort: float = 1.0,
        integers: str = FROZEN,
        materialize: bool = True,
    ) -> None:
        super().__init__()
        self.view = view
        self.dtype = view.dtype
        self.integers = integers
        self.materialize = materialize
        self.values = nn.Parameter(torch.empty(0))
        self.register_buffer('fixed', torch.empty(0), persistent=False)
        self._fresh = (get_representation(representation), settings)
        self._effort = effort
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept: tuple[tuple[int, ...], Tensor] | None = None
        self._draft: tuple[Tensor, Tensor] | None = None
        self._resized = False
        self._packed: dict[str, State] | None = None
        self._packed_at: tuple[int, ...] = ()
        self._holds_packed = False
        self._can_train_integers = True

    def forward(self) -> Tensor:
        """The weight in the shape of the parameter, or what stands for one that is not materialised.

        Raises:
            RiemError: the states were resized after DistributedDataParallel took hold of them.
        """
        if self._draft is not None:
            return self._draft[0]
        differentiable = torch.is_grad_enabled() and self.values.requires_grad
        if differentiable:
            self._unpack()
        if differentiable and self._resized:
            self._require_new_gradient()
        if not self.materialize and representation_of(self._shapes):
            return UnmadeWeight(self, self.view.shape, self.dtype, self.values.device, differentiable)
        if self.training or differentiable:
            return self._weight(self.states())
        if self._kept is None or self._kept[0] != self._versions(self._kept[1]):
            with torch.inference_mode(False), torch.no_grad():  # fit for training too
                weight = self._weight(self.states())
            self._kept = (self._versions(weight), weight)
        return self._kept[1]

    def states(self) -> dict[str, Tensor]:
        """The states by name, as views on :attr:`values` and :attr:`fixed` where these hold them."""
        if self._holds_packed:
            return {name: self._packed[name][...].float() for name in self._shapes}
        found = {}
        for names, flat in zip(self._trained_and_fixed(self._shapes), (self.values, self.fixed)):
            parts = flat.split([math.prod(self._shapes[name]) for name in names])
            found.update((name, part.view(self._shapes[name])) for name, part in zip(names, parts))
        return {name: found[name] for name in self._shapes}

    def factors(self, grouped: bool) -> tuple[Sequence[Factor], Mapping[str, State]]:
        """What a product that does not make the weight needs, see :class:`mmriem.core.matrix_free.Source`."""
        kind = representation_of(self._shapes)
        states = self._packed if self._holds_packed else _with_integers(kind, self.states())
        return kind.factors(grouped), states

    def made(self) -> Tensor:
        """The weight, where something else reads it."""
        return self._weight(self.states())

    @torch.no_grad()
    def reset(self, states: Mapping[str, Tensor], packed: dict[str, State] | None = None) -> None:
        """Hold these states instead; names and sizes may differ from the present ones.

        ``packed`` are the same ones, see :meth:`Representation.packed_states`; without them they are not packed.

        Raises:
            RiemError: no representation has states of these names.
        """
        self._set(states)
        self._packed = packed and _on_device(packed, self.values.device)
        self._packed_at = self._state_versions()
        if not self.training:
            self._pack()

    def _set(self, states: Mapping[str, Tensor]) -> None:
        kind = representation_of(states)
        ordered = {name: states[name] for name in (kind.state_names if kind else [DENSE])}
        trained, fixed = (_flat([states[name] for name in names]) for names in self._trained_and_fixed(ordered))
        if trained.numel() == self.values.numel():
            self.values.copy_(trained)
        else:
            self.values.data, self.values.grad = trained.to(self.values.device), None
            self._resized = True
        if fixed.numel() == self.fixed.numel():
            self.fixed.copy_(fixed)
        else:
            self.fixed = fixed.to(self.values.device)
        self._shapes = {name: tuple(value.shape) for name, value in ordered.items()}
        self._kept = self._draft = None
        self._holds_packed = False

    def _pack(self) -> None:
        """Hold the packed states alone, if there are any and the others have not been trained since, or begun to be."""
        changed = self._packed_at != self._state_versions() or self.values.grad is not None
        if self._packed is None or self._holds_packed or changed:
            return
        with torch.inference_mode(False):
            nothing = torch.empty(0, device=self.values.device)
            self.values.data, self.fixed = nothing, nothing.clone()
        self._holds_packed = True

    def _unpack(self) -> None:
        if self._holds_packed:
            with torch.inference_mode(False), torch.no_grad():
                self._set(self.states())
            self._packed_at = self._state_versions()

    def take(self, key: str, tensor: Tensor) -> None:
        """Hold the weight of a checkpoint: its states in a ``.riem`` file, else states that are fitted to it.

        Raises:
            RiemError: the tensor is no finite matrix, or the budget is too small for it.
        """
        record = getattr(tensor, STATES, False)
        if isinstance(record, WeightRecord):
            self._hold(record.encoded)
        elif record is None or self._fresh[1] is None:  # a .riem file keeps it dense, or it is too small for states
            self.reset({DENSE: tensor})
            self._can_train_integers = True
        else:
            self._hold(self.fitted(key, tensor))

    def _hold(self, encoded: Representation) -> None:
        self.reset(encoded.states(), None if self.materialize else encoded.packed_states())
        self._can_train_integers = encoded.can_train_integers

    def needs_fit(self, tensor: Tensor) -> bool:
        """Whether :meth:`take` would fit states to the tensor, and has not done so before."""
        record = getattr(tensor, STATES, False)
        is_ordinary = record is not None and not isinstance(record, WeightRecord) and self._fresh[1] is not None
        fits = tuple(tensor.shape) == self.view.shape
        return is_ordinary and fits and getattr(tensor, FITTED, (None,))[0] != self._identity(tensor)

    def fitted(self, key: str, tensor: Tensor, progress: Progress | None = None) -> Representation:
        """States fitted to a weight in the Euclidean metric; kept with the tensor."""
        kind, settings = self._fresh
        if self.needs_fit(tensor):
            matrix = self.view.to_matrix(tensor.detach()).to(self.values.device)
            try:
                with one_thread():
                    encoded = kind.fit(matrix, dict(settings), effort=self._effort, progress=progress)
            except RiemError as error:
                raise RiemError(f'{key}: {error}') from error
            setattr(tensor, FITTED, (self._identity(tensor), encoded))
        return getattr(tensor, FITTED)[1]

    def initialise(self, weight: Tensor) -> None:
        """Hold random states of a weight with the mean and spread of ``weight``; if dense, that itself."""
        kind, settings = self._fresh
        self._can_train_integers = True
        if settings is None:
            self.reset({DENSE: weight})
            return
        with torch.no_grad():
            drawn = kind.random_states(self.view.matrix_shape, dict(settings))
            current, wanted = kind.regenerate(drawn), self.view.to_matrix(weight)
            spread = max(float(wanted.std(unbiased=False)), MIN_SPREAD)
            gain = spread / max(float(current.std(unbiased=False)), 1e-12)
            shift = float(wanted.mean()) - gain * float(current.mean())
            states = kind.scaled_states(drawn, gain, shift)
            if self.materialize:
                self.reset(states)
            else:
                packed = kind.pack_states(states, settings)
                self.reset({name: state[...].float() for name, state in packed.items()}, packed)

    def encoded(self) -> Representation | None:
        """The states as they are written to a file; None for a weight that is held dense.

        Raises:
            RiemError: the states are not finite.
        """
        kind = representation_of(self._shapes)
        if kind is None:
            return None
        own, settings = self._fresh
        states = {name: value.detach().cpu() for name, value in self.states().items()}
        if not all(value.isfinite().all() for value in states.values()):
            raise RiemError(f'weight {self.view.name!r}: expected finite states, found NaN or infinite ones')
        return kind.from_states(states, settings if own is kind else None, self.view.period)

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
        """Also forgets the kept weight, and packs or unpacks states.

        Raises:
            RiemError: integers would be trained that follow a trellis.
        """
        if mode and self.integers == STRAIGHT_THROUGH and not self._can_train_integers:
            raise RiemError(
                f'weight {self.view.name!r}: expected integers that training can move, found a trellis, off which each '
                'would take about a bit more; compress with --no-trellis, or leave them frozen'
            )
        self._kept = None
        super().train(mode)
        if mode:
            self._unpack()
        else:
            self._pack()
        return self

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        kind = representation_of(self._shapes)
        states = ', '.join(f'{name}={shape}' for name, shape in self._shapes.items())
        return f'{self.view.shape}, {kind.name}: {states}' if kind else f'{self.view.shape}, dense'

    def _versions(self, weight: Tensor) -> tuple[int, ...]:
        """Other numbers after every write to the states or to the weight that was made of them."""
        return *self._state_versions(), weight._version

    def _state_versions(self) -> tuple[int, ...]:
        return tuple(number for x in (self.values, self.fixed) for number in (x.data_ptr(), x._version))

    def _trained_and_fixed(self, names: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The names of states, divided into those that are trained and those that are not."""
        kind = representation_of(names) if names else None
        discrete = [name for name in names if kind and name in kind.integer_states]
        others = [name for name in names if name not in discrete]
        return (discrete, others) if discrete and self.integers == STRAIGHT_THROUGH else (others, discrete)

    def _identity(self, tensor: Tensor) -> tuple[Any, ...]:
        """What a fit depends on."""
        kind, settings = self._fresh
        content = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
        return kind.name, settings, self._effort, zlib.crc32(content)

    def _weight(self, states: Mapping[str, Tensor]) -> Tensor:
        kind = representation_of(states)
        if kind is None:
            weight = states[DENSE]
        else:
            with torch.autocast(self.values.device.type, enabled=False):
                weight = self.view.from_matrix(kind.regenerate(_with_integers(kind, states)))
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

        unchanged = self._packed_at == self._state_versions()
        super()._apply(placed, recurse)
        if self._packed is not None:
            self._packed = _on_device(self._packed, self.values.device)
            self._packed_at = self._state_versions() if unchanged else ()
        return self

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
            self.reset(found, self._packed if self._has(found) else None)
        except RiemError as error:
            error_msgs.append(f'{prefix[:-1]}: {error}')

    def _has(self, states: Mapping[str, Tensor]) -> bool:
        """Whether the packed states are these."""
        if self._packed is None or (not self._holds_packed and self._packed_at != self._state_versions()):
            return False
        own = self.states()
        return set(own) == set(states) and all(torch.equal(own[name], value) for name, value in states.items())

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


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors]) if tensors else torch.empty(0)


def _nearest_integers(values: Tensor) -> Tensor:
    """Rounded; the gradient passes as if they were not."""
    return values + (values.round() - values).detach() if values.requires_grad else values.round()


def _with_integers(kind: type[Representation], states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**states, **{name: _nearest_integers(states[name]) for name in kind.integer_states}}


def _on_device(states: Mapping[str, State], device: torch.device) -> dict[str, State]:
    return {name: state.to(device) for name, state in states.items()}


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


class HeldStates(nn.ModuleDict):
    """The states of a live module's weights, by the names of the parameters that they stand for."""

    def apply(self, fn: Callable[[nn.Module], None]) -> HeldStates:
        """Nothing: an initialiser takes for a layer what has a ``weight``, and finds that of the live module itself."""
        return self


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
        """Take states from the records that the tensors of a ``.riem`` file carry, or fit them to the tensors.

        Raises:
            RiemError: states cannot be fitted to a tensor of an ordinary checkpoint.
        """
        for attribute, states in self._modules[STATES]._modules.items():
            if (key := prefix + attribute) not in state_dict:
                continue
            tensor = state_dict.pop(key)
            if tuple(tensor.shape) == states.view.shape:
                states.take(key, tensor)
            else:
                found = tuple(tensor.shape)
                error_msgs.append(f'size mismatch for {key}: expected {states.view.shape}, found {found}')
            for name, value in states.states().items():
                state_dict[f'{prefix}{STATES}.{attribute}.{name}'] = value
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


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


def _plain_class(live: type[nn.Module]) -> type[nn.Module]:
    return next((plain for plain, cls in _LAYERS.items() if cls is live), None) or live._plain


def _blank(plain: type[nn.Module]) -> nn.Module:
    cls = live_class(plain)
    return cls.__new__(cls)


def hold_states(module: nn.Module, attribute: str, states: WeightStates) -> None:
    """Replace one parameter of a module by states of its mean and spread; the module itself becomes live."""
    start = getattr(module, attribute)
    states.to(start.device).initialise(start)
    states.values.requires_grad_(start.requires_grad)
    _attach(module, attribute, states)


def _attach(module: nn.Module, attribute: str, states: WeightStates) -> None:
    module._parameters[attribute] = None  # keeps its place, should the module become dense again
    if STATES not in module._modules:
        module.add_module(STATES, HeldStates())
    module._modules[STATES].add_module(attribute, states.train(module.training))
    module.__class__ = live_class(type(module))


def make_dense(model: nn.Module) -> dict[str, WeightStates]:
    """Replace states by ordinary parameters with the weights that they regenerate, in place.

    Returns:
        The states by the state-dict key of their weight.

    >>> layer = RieMLinear(32, 32, representation='bilinear')
    >>> list(make_dense(layer)), type(layer).__name__, sorted(layer.state_dict())
    (['weight'], 'Linear', ['bias', 'weight'])
    """
    parameters: dict[WeightStates, nn.Parameter] = {}
    released = {}
    for prefix, module in list(model.named_modules()):
        if isinstance(module, LiveModule):
            module.__class__, held = _plain_class(type(module)), module._modules.pop(STATES)
            for attribute, states in held._modules.items():
                if states not in parameters:
                    parameters[states] = nn.Parameter(states.made().detach().clone(), states.values.requires_grad)
                    released[f'{prefix}.{attribute}' if prefix else attribute] = states
                module.register_parameter(attribute, parameters[states])
    return released


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
    ratio: float | None = None,
    bits: float | None = None,
    state_bits: int = 0,
    effort: float = 1.0,
    integers: str = FROZEN,
    materialize: bool = True,
    include: Sequence[str] = ('*',),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Replace the weights of a model by states of the same mean and spread, in place.

    The states are fresh ones, to train from or to be filled from a ``.riem`` file, which brings its own sizes
    and representation of each weight. A weight too small for states of that size is held dense until then. An
    ordinary checkpoint is fitted with the representation and the size that are given here.

    Args:
        model: any module.
        representation: name of the representation.
        ratio: size of the states of each weight, quantised as in a file, to its fp32 values; or
        bits: their bits for each weight. Without either the ratio is ``DEFAULT_RATIO``.
        state_bits: as in :class:`mmriem.core.compress.Settings`.
        effort: of fits to an ordinary checkpoint, likewise.
        integers: what training does with the integer states of a lattice: ``frozen``, it moves the steps, or
            ``straight_through``, it moves the integers.
        materialize: False: the weights of ``nn.Linear`` and ``nn.Conv2d`` are never made as a whole, but applied
            block by block, see :mod:`mmriem.core.matrix_free`.
        include, exclude: glob patterns on state-dict keys.

    Returns:
        Keys of the weights that were replaced.

    Raises:
        RiemError: a pattern matches nothing, the representation is not known, or a number is out of range.

    >>> make_live(nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU()), representation='bilinear', bits=6)
    ['0.weight']
    """
    kind = get_representation(representation)
    rate = _bits_per_weight(ratio, bits)
    if state_bits and not STATE_BITS[0] <= state_bits <= STATE_BITS[1]:
        raise RiemError(f'state_bits: expected 0 (by the ratio) or 2 to 8, found {state_bits}')
    if not 0 < effort < math.inf:
        raise RiemError(f'effort: expected a number above 0, found {effort}')
    if integers not in INTEGERS:
        raise RiemError(f'integers: expected one of {", ".join(INTEGERS)}, found {integers!r}')
    owners = {owner.name: owner for owner in parameter_owners(model)}
    views = find_weights(model, include, exclude)
    for view in views:
        settings = kind.configure(
            view.matrix_shape, rate * math.prod(view.shape), state_bits=state_bits, period=view.period
        )
        first, *others = (owners[name] for name in (view.name, *view.aliases))
        blockwise = first.attribute == 'weight' and isinstance(first.module, (nn.Linear, nn.Conv2d))
        states = WeightStates(view, representation, settings, effort, integers, materialize or not blockwise)
        hold_states(first.module, first.attribute, states)
        for other in others:
            if other.module._parameters[other.attribute] is not None:  # so it is where the whole module is shared
                _attach(other.module, other.attribute, states)
    return [view.name for view in views]


def _bits_per_weight(ratio: float | None, bits: float | None) -> float:
    if ratio is not None and bits is not None:
        raise RiemError(f'ratio, bits: expected one of them, found ratio {ratio} and bits {bits}')
    if bits is not None:
        if not 0 < bits <= 32:
            raise RiemError(f'bits: expected a number above 0 and at most 32, found {bits}')
        return bits
    ratio = DEFAULT_RATIO if ratio is None else ratio
    if not 0 < ratio <= 1:
        raise RiemError(f'ratio: expected a number above 0 and at most 1, found {ratio}')
    return 32 * ratio


@dataclass(frozen=True)
class Unfitted:
    """A weight of an ordinary checkpoint, ``tensor`` of the key ``key``, and the states that are to hold it."""

    key: str
    tensor: Tensor
    states: WeightStates


def holds_states(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a model with live modules.

    >>> holds_states(RieMLinear(32, 32).state_dict()), holds_states(nn.Linear(32, 32).state_dict())
    (True, False)
    """
    return any(f'.{STATES}.' in f'.{key}' for key in tensors)


def find_unfitted(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str = '') -> list[Unfitted]:
    """What loading ``tensors`` into the model would have to fit: each weight once.

    Args:
        model: with live modules.
        tensors: a state dict.
        prefix: of the model's keys there.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LiveModule):
            for attribute, states in module._modules[STATES]._modules.items():
                key = f'{prefix}{name}.{attribute}' if name else f'{prefix}{attribute}'
                if key in tensors and states.needs_fit(tensors[key]):
                    found.setdefault(id(tensors[key]), Unfitted(key, tensors[key], states))
    return list(found.values())


def fit_all(
    unfitted: Sequence[Unfitted], threads: int = 1, on_progress: Callable[[float, str], None] | None = None
) -> None:
    """Fit the states; loading finds them with the tensors. The same ones whatever the number of threads.

    Raises:
        RiemError: a tensor is not finite, or the budget is too small for it.
    """
    tasks = [
        Task(
            weight.key,
            weight.tensor.numel(),
            lambda progress, weight=weight: weight.states.fitted(weight.key, weight.tensor, progress),
        )
        for weight in unfitted
    ]
    run_all(tasks, threads, on_progress)


class RieMConv2d(LiveModule, nn.Conv2d):
    """A convolution that holds states; arguments of ``nn.Conv2d``, and ``WEIGHT_OPTIONS`` by keyword.

    Fresh weights have He's spread for a ReLU, as those of mmcv's ``ConvModule`` and mmdet's ResNet.

    >>> layer = RieMConv2d(32, 64, 3, padding=1, representation='bilinear', ratio=0.2)
    >>> sorted(layer.state_dict())
    ['bias', 'riem.weight.p', 'riem.weight.q']
    >>> layer(torch.zeros(1, 32, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in WEIGHT_OPTIONS if name in kwargs}
        super().__init__(*args, **kwargs)
        _own_states(self, options)

    def reset_parameters(self) -> None:
        """He's initialisation, no bias."""
        with writable_weights(self):
            nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RieMLinear(LiveModule, nn.Linear):
    """A linear layer that holds states; arguments of ``nn.Linear``, and ``WEIGHT_OPTIONS`` by keyword."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in WEIGHT_OPTIONS if name in kwargs}
        super().__init__(*args, **kwargs)
        _own_states(self, options)

    def reset_parameters(self) -> None:
        """The initialisation of ``nn.Linear``."""
        with writable_weights(self):
            super().reset_parameters()


def _own_states(layer: nn.Module, options: Mapping[str, Any]) -> None:
    """Turn the layer's own weight into states; one below ``surgery.DEFAULT_MIN_NUMEL`` stays a parameter."""
    layer.add_module(STATES, HeldStates())
    make_live(layer, **options)


_LAYERS = {nn.Conv2d: RieMConv2d, nn.Linear: RieMLinear}
