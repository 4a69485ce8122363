"""Modules with states in place of weights, their state dicts and their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

from torch import Tensor, nn

from .held import HeldWeight
from .states import DENSE, STATES, WeightStates

if TYPE_CHECKING:
    _Mixin = nn.Module
else:
    _Mixin = object
_LAYERS: dict[type[nn.Module], type[nn.Module]] = {}
"""Layers that are live from birth, by the class whose arguments they take."""
_MADE: dict[type[nn.Module], type[nn.Module]] = {}
"""Classes of live modules that were made when they were needed, by the module class."""


def layer_of(plain: type[nn.Module]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: live modules of class ``plain`` are of the decorated class."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        _LAYERS[plain] = cls
        return cls

    return register


class HeldStates(nn.ModuleDict):
    """The states of a live module's weights, by the names of the parameters that they stand for."""

    def named(self) -> list[tuple[str, HeldWeight]]:
        """Each parameter's name and states."""
        return [(name, states) for name, states in self.items() if isinstance(states, HeldWeight)]

    def apply(self, fn: Callable[[nn.Module], None]) -> HeldStates:
        """Nothing: an initialiser takes for a layer what has a ``weight``, and finds that of the live module itself."""
        return self


class LiveModule(_Mixin):
    """Mixin that makes parameters of a module out of states; mixed in before the module's own class."""

    _modules: dict[str, Any]
    _plain: ClassVar[type[nn.Module]]

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

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle by the module's own class: that of a live module is made when it is needed."""
        plain = type(self).__dict__.get('_plain')
        if plain is None:
            return super().__reduce_ex__(protocol)
        return _blank, (plain,), self.__dict__

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """While weights may be written to, they are in the state dict as well: initialisers look there."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for attribute, states in self._modules[STATES]._modules.items():
            if (draft := states.draft()) is not None:
                destination[prefix + attribute] = draft

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


def live_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of live modules of a module class; the same one for each call.

    >>> live_class(nn.Conv2d).__name__, live_class(nn.Embedding).__name__
    ('RieMConv2d', 'RieMEmbedding')
    """
    if cls in _LAYERS:
        return _LAYERS[cls]
    if issubclass(cls, LiveModule):
        return cls
    if cls in _MADE:
        return _MADE[cls]
    name = cls.__name__ if cls.__name__.startswith('RieM') else f'RieM{cls.__name__}'
    body = {'_plain': cls, '__module__': cls.__module__, '__doc__': cls.__doc__}
    metaclass: Any = type(cls)
    return _MADE.setdefault(cls, metaclass(name, (LiveModule, cls), body))


def become_plain(module: Any) -> HeldStates:
    """Make a live module one of its own class again; returns the states that it has held."""
    live = type(module)
    module.__class__ = next((plain for plain, cls in _LAYERS.items() if cls is live), None) or live._plain
    return module._modules.pop(STATES)


def _blank(plain: type[nn.Module]) -> nn.Module:
    cls = live_class(plain)
    return cls.__new__(cls)


def hold_states(module: nn.Module, attribute: str, states: WeightStates) -> None:
    """Replace one parameter of a module by states of its mean and spread; the module itself becomes live."""
    start = getattr(module, attribute)
    states.to(start.device).initialise(start)
    states.values.requires_grad_(start.requires_grad)
    attach(module, attribute, states)


def attach(module: nn.Module, attribute: str, states: HeldWeight) -> None:
    """Let a module hold this in place of a parameter; it becomes live."""
    module._parameters[attribute] = None  # keeps its place, should the module become dense again
    if STATES not in module._modules:
        module.add_module(STATES, HeldStates())
    held = module.get_submodule(STATES)
    held.add_module(attribute, states.train(module.training))
    module.__class__ = live_class(type(module))


def holds_states(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a model with live modules.

    >>> from .layers import RieMLinear
    >>> holds_states(RieMLinear(32, 32).state_dict()), holds_states(nn.Linear(32, 32).state_dict())
    (True, False)
    """
    return any(f'.{STATES}.' in f'.{key}' for key in tensors)
