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

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RiemError
from ..execution.tasks import Progress
from ..file.archive import WeightRecord
from ..representations.base import Codec, Fitter
from ..representations.blocks import Factor, State
from ..representations.registry import get_representation, parsed
from ..weights.views import WeightView
from .draft import Draft
from .fresh import Fresh
from .held import HeldWeight
from .packing import Packing
from .regeneration import DENSE, representation_of, shape_of, sizes_of, with_integers
from .unmade import UnmadeWeight

STATES = 'riem'
"""Name of the submodule of a live module that holds the states of its weights."""
FROZEN, STRAIGHT_THROUGH = INTEGERS = ('frozen', 'straight_through')
"""Ways of training with integer states: they stay as they are, or gradients pass through their rounding."""


class WeightStates(HeldWeight):
    """The states of one weight, trainable; calling it regenerates the weight.

    In eval mode without gradients the weight is regenerated once and kept until the states change, the mode
    is set or the module moves. Writes through ``.data`` go unnoticed in between: call ``eval()`` after them.

    Where the weight is not to be materialised, it is applied as :mod:`.matrix_free` does it. Then states
    that are those of a file, or fresh, are held packed in eval mode: :attr:`values` and :attr:`fixed` are empty until
    the mode is set to training or a gradient is wanted.

    Attributes:
        view: the weight.
        values: the one parameter, ``(number of values,)`` float32, also in a half-precision model.
        fixed: buffer of the states that training leaves alone, ``(number of values,)`` float32.
        dtype: dtype of the regenerated weight; follows ``half()`` and the like.

    Args:
        view: the weight.
        fitter: of an ordinary weight; its representation is that of fresh states.
        configuration: of the fitter, and of fresh states; None: hold the weight dense.
        integers: ``frozen`` or ``straight_through``.
        materialize: False where only ``F.linear`` and ``F.conv2d`` read the weight, and shall not have it made.
    """

    fixed: Tensor
    most: int | None = None

    def __init__(
        self,
        view: WeightView,
        fitter: Fitter[Any, Any],
        configuration: Any | None,
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
        self._fresh = Fresh(fitter, configuration)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kept: tuple[tuple[int, ...], Tensor] | None = None
        self._draft: Draft | None = None
        self._resized = False
        self._packing = Packing()
        self._can_train_integers = True

    def forward(self) -> Tensor:
        """The weight in the shape of the parameter, or what stands for one that is not materialised.

        Raises:
            RiemError: the states were resized after DistributedDataParallel took hold of them.
        """
        if self._draft is not None:
            return self._draft.weight
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
        if self._packing.alone:
            return self._packing.unpacked(self._shapes)
        found: dict[str, Tensor] = {}
        for names, flat in zip(self._trained_and_fixed(self._shapes), (self.values, self.fixed)):
            parts = flat.split([math.prod(self._shapes[name]) for name in names])
            found.update((name, part.view(self._shapes[name])) for name, part in zip(names, parts))
        return {name: found[name] for name in self._shapes}

    def factors(self, grouped: bool) -> tuple[Sequence[Factor], Mapping[str, State]]:
        """What a product that does not make the weight needs, see :class:`mmriem.core.live.matrix_free.Source`."""
        kind = representation_of(self._shapes)
        if kind is None:
            raise ValueError('a dense weight has no factors')
        packed = self._packing.states if self._packing.alone else None
        return kind.live.factors(grouped), packed or with_integers(kind, self.states())

    def made(self) -> Tensor:
        """The weight, where something else reads it."""
        return self._weight(self.states())

    @torch.no_grad()
    def reset(self, states: Mapping[str, Tensor], packed: Mapping[str, State] | None = None) -> None:
        """Hold these states instead; names and sizes may differ from the present ones.

        ``packed`` are the same ones, see :meth:`LiveStates.packed_states`; without them they are not packed.

        Raises:
            RiemError: no representation has states of these names.
        """
        self._set(states)
        self._packing.hold(packed, self.values.device, self._state_versions())
        if not self.training:
            self._pack()

    def _set(self, states: Mapping[str, Tensor]) -> None:
        kind = representation_of(states)
        ordered = {name: states[name] for name in (kind.live.state_names if kind else [DENSE])}
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
        self._packing.alone = False

    def _pack(self) -> None:
        """Hold the packed states alone, if there are any and the others have not been trained since, or begun to be."""
        unchanged = self._packing.is_of(self._state_versions()) and self.values.grad is None
        if self._packing.alone or not unchanged:
            return
        with torch.inference_mode(False):
            nothing = torch.empty(0, device=self.values.device)
            self.values.data, self.fixed = nothing, nothing.clone()
        self._packing.alone = True

    def _unpack(self) -> None:
        if self._packing.alone:
            with torch.inference_mode(False), torch.no_grad():
                self._set(self.states())
            self._packing.renew(self._state_versions())

    def take(self, key: str, tensor: Tensor) -> None:
        """Hold the weight of a checkpoint: its states in a ``.riem`` file, else states that are fitted to it.

        Raises:
            RiemError: the tensor is no finite matrix, or the budget is too small for it.
        """
        record = getattr(tensor, STATES, False)
        if isinstance(record, WeightRecord):
            self._hold(parsed(record.encoded))
        elif record is None or self._fresh.is_dense:  # a .riem file keeps it dense, or it is too small for states
            self.reset({DENSE: tensor})
            self._can_train_integers = True
        else:
            self._hold(self.fitted(key, tensor))

    def _hold(self, encoded: Codec) -> None:
        live = get_representation(encoded.name).live
        self.reset(encoded.states(), None if self.materialize else live.packed_states(encoded))
        self._can_train_integers = live.can_train_integers(encoded)

    def needs_fit(self, tensor: Tensor) -> bool:
        """Whether :meth:`take` would fit states to the tensor, and has not done so before."""
        record = getattr(tensor, STATES, False)
        is_ordinary = record is not None and not isinstance(record, WeightRecord) and not self._fresh.is_dense
        fits = tuple(tensor.shape) == self.view.shape
        return is_ordinary and fits and not self._fresh.is_fitted(tensor)

    def fitted(self, key: str, tensor: Tensor, progress: Progress | None = None) -> Codec:
        """States fitted to a weight in the Euclidean metric; kept with the tensor."""
        return self._fresh.fitted(key, tensor, self.view, self.values.device, progress)

    def initialise(self, weight: Tensor) -> None:
        """Hold random states of a weight with the mean and spread of ``weight``; if dense, that itself."""
        self._can_train_integers = True
        fresh = self._fresh
        if fresh.is_dense:
            self.reset({DENSE: weight})
            return
        with torch.no_grad():
            states = fresh.drawn(self.view.to_matrix(weight))
            if self.materialize:
                self.reset(states)
            else:
                packed = fresh.kind.live.pack_states(states, fresh.configuration)
                self.reset({name: state[...].float() for name, state in packed.items()}, packed)

    def encoded(self) -> Codec | None:
        """The states as they are written to a file; None for a weight that is held dense.

        Raises:
            RiemError: the states are not finite.
        """
        kind = representation_of(self._shapes)
        if kind is None:
            return None
        states = {name: value.detach().cpu() for name, value in self.states().items()}
        if not all(value.isfinite().all() for value in states.values()):
            raise RiemError(f'weight {self.view.name!r}: expected finite states, found NaN or infinite ones')
        configuration = self._fresh.configuration if self._fresh.kind is kind else None
        return kind.live.from_states(states, configuration, self.view.kernel_size)

    @property
    def is_trained(self) -> bool:
        return self.values.requires_grad

    def draft(self) -> Tensor | None:
        return None if self._draft is None else self._draft.weight

    def begin_draft(self) -> bool:
        """From now on give out one dense weight that may be written to; False where that is so already."""
        if self._draft is not None:
            return False
        with torch.no_grad():
            self._draft = Draft(self._weight(self.states()))
        return True

    def end_draft(self) -> None:
        """Regenerate the weight again; from fresh states if the draft was written to."""
        if self._draft is None:  # states were loaded meanwhile
            return
        draft, self._draft = self._draft, None
        if draft.is_written:
            self.initialise(draft.weight)

    def train(self, mode: bool = True) -> WeightStates:
        """Also forgets the kept weight, and packs or unpacks states.

        Raises:
            RiemError: integers would be trained that follow a trellis.
        """
        if mode and self.integers == STRAIGHT_THROUGH and not self._can_train_integers:
            raise RiemError(
                f'weight {self.view.name!r}: expected integers that training can move, found a trellis, off which each '
                'would take about a bit more; compress with trellis=False (--no-trellis), or leave them frozen'
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
        discrete = [name for name in names if kind and name in kind.live.integer_states]
        others = [name for name in names if name not in discrete]
        return (discrete, others) if discrete and self.integers == STRAIGHT_THROUGH else (others, discrete)

    def _weight(self, states: Mapping[str, Tensor]) -> Tensor:
        kind = representation_of(states)
        if kind is None:
            weight = states[DENSE]
        else:
            with torch.autocast(self.values.device.type, enabled=False):
                weight = self.view.from_matrix(kind.live.regenerate(with_integers(kind, states)))
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

        before = self._state_versions()
        super()._apply(placed, recurse)
        self._packing.move(self.values.device, self._state_versions(), before)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, value in self.states().items():
            destination[prefix + name] = value if keep_vars else value.detach()

    def _expected(self) -> Iterable[str]:
        return self._shapes

    def _load(self, found: Mapping[str, Tensor]) -> None:
        """Take over states of whatever kind and size, if they regenerate a weight of the right shape."""
        if {name: tuple(value.shape) for name, value in found.items()} != self._shapes:
            self._check(found)
        self.reset(found, self._packing.states if self._has(found) else None)

    def _has(self, states: Mapping[str, Tensor]) -> bool:
        """Whether the packed states are these."""
        if not self._packing.alone and not self._packing.is_of(self._state_versions()):
            return False
        own = self.states()
        return set(own) == set(states) and all(torch.equal(own[name], value) for name, value in states.items())

    @torch.no_grad()
    def _check(self, states: Mapping[str, Tensor]) -> None:
        found, sizes = shape_of(states), sizes_of(states)
        expected = self.view.shape if set(states) == {DENSE} else self.view.matrix_shape
        if found != expected:
            raise RiemError(f'expected states of a weight {expected}, found those of one {found}: {sizes}')

    def __getstate__(self) -> dict[str, Any]:
        """A copy regenerates its weight itself."""
        return {**self.__dict__, '_kept': None, '_draft': None}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors]) if tensors else torch.empty(0)
