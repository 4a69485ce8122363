"""Networks whose weights stay compressed in memory while they run.

A module holds the payload of its weight as it is in a ``.riem`` file. Where the weight is applied, by ``linear`` or a
convolution, bands of its rows are made, applied and dropped (:mod:`.matrix_free`); other code has the weight made as a
whole for as long as it uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RiemError
from ..file.archive import RECORD, Archive, WeightRecord
from ..representations.blocks import Factor, State
from ..representations.packed import Packed
from ..weights.views import WeightView, find_weights, parameter_owners
from .decoded import CACHE, DecodedWeights, size_of
from .held import HeldWeight
from .module import attach
from .regeneration import DENSE
from .stored import BAND, Stored
from .unmade import UnmadeWeight

PAYLOAD = 'payload'
"""Name of the bytes of a weight in a state dict."""
MEMORY = ('dense', 'compressed')
"""How a network may hold its weights."""
APPLIED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
"""Modules whose ``weight`` is applied in bands."""


class CompressedWeight(HeldWeight):
    """The payload of one weight; until a ``.riem`` file is loaded, the weight itself.

    Attributes:
        view: the weight.
        stored: the payload; None until then.
        dense: the weight until then; None afterwards.
        place: empty; its device and dtype are those of the weight. Payloads stay on the CPU.
        most: weights that are made at a time.

    Args:
        view: the weight.
        start: what it is until a file is loaded.
        decoded: of the network.
        in_bands: whether products alone read the weight.
    """

    dense: Tensor | None
    most: int | None = BAND

    def __init__(self, view: WeightView, start: Tensor, decoded: DecodedWeights, in_bands: bool) -> None:
        super().__init__()
        self.view, self.in_bands = view, in_bands
        self.decoded = decoded
        self.stored: Stored | None = None
        self._is_draft = False
        self.place = nn.Parameter(start.new_empty(0), requires_grad=False)
        self.register_buffer('dense', start.detach(), persistent=False)

    def forward(self) -> Tensor:
        """The weight, or what stands for one that is applied in bands.

        Raises:
            RiemError: it would be trained, or its payload is damaged.
        """
        if self.stored is not None and self.in_bands:
            return UnmadeWeight(self, self.view.shape, self.place.dtype, self.place.device)
        if not self._is_draft:
            self._require_eval()
        return self.made()

    def made(self) -> Tensor:
        if self.stored is None:
            return self._start()
        with torch.inference_mode(False), torch.no_grad():
            weight = self.stored.made(self.decoded.states(self.stored))
            return weight.to(self.place.device, self.place.dtype)

    def factors(self, grouped: bool) -> tuple[Sequence[Factor], Mapping[str, State]]:
        """As :class:`UnmadeWeight` asks for them.

        Raises:
            RiemError: the weight would be trained, or its payload is damaged.
        """
        self._require_eval()
        if self.stored is None:
            raise ValueError(f'{self.view.name}: there are no factors of a dense weight')
        return self.stored.factors(grouped), self.decoded.states(self.stored)

    def encoded(self) -> Packed | None:
        return None if self.stored is None else self.stored.encoded

    def states(self) -> dict[str, Tensor]:
        return {DENSE: self._start()} if self.stored is None else {PAYLOAD: self.stored.data}

    def take(self, key: str, tensor: Tensor) -> None:
        """Hold the payload of a weight of a ``.riem`` file, or a weight that it keeps dense.

        Raises:
            RiemError: the tensor is of another file, or of another matrix.
        """
        record = getattr(tensor, RECORD, False)
        if isinstance(record, WeightRecord):
            self._hold(Stored.of(self.view, record))
        elif record is None:
            self.reset({DENSE: tensor})
        else:
            raise RiemError(
                f'{key}: expected the weight of a .riem file, found that of another checkpoint, which '
                "memory='compressed' cannot hold; compress it first"
            )

    def reset(self, states: Mapping[str, Tensor]) -> None:
        """Hold a payload, or a dense weight.

        Raises:
            RiemError: the states are neither, or of another weight.
        """
        if set(states) == {PAYLOAD}:
            self._hold(Stored(self.view, states[PAYLOAD].detach().cpu().contiguous()))
            return
        if set(states) != {DENSE} or tuple(states[DENSE].shape) != self.view.shape:
            found = ', '.join(f'{name} {tuple(value.shape)}' for name, value in states.items())
            raise RiemError(f'expected the payload of a weight {self.view.shape}, found {found}; load a .riem file')
        self.stored = None
        self.dense = states[DENSE].detach().to(self.place.device, self.place.dtype, copy=True)

    @property
    def is_trained(self) -> bool:
        return True

    def begin_draft(self) -> bool:
        """Initialisers may write to a weight until a file is loaded; a payload stays as it is."""
        begins = self.stored is None and not self._is_draft
        self._is_draft |= begins
        return begins

    def end_draft(self) -> None:
        self._is_draft = False

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f'{self.view.shape}, ' + (f'{self.stored.data.numel():,} bytes' if self.stored else 'dense')

    def _hold(self, stored: Stored) -> None:
        self.decoded.expect(stored, in_place_of=self.stored)
        self.stored, self.dense = stored, None

    def _start(self) -> Tensor:
        if self.dense is None:
            raise ValueError(f'{self.view.name}: there is a payload in place of the dense weight')
        return self.dense

    def _require_eval(self) -> None:
        if self.training and torch.is_grad_enabled():
            raise RiemError(
                f'weight {self.view.name!r}: expected a network that is run, found one that is trained, which '
                "memory='compressed' cannot be; call eval() and torch.no_grad(), or load it without memory='compressed'"
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, value in self.states().items():
            destination[prefix + name] = value

    def _expected(self) -> Iterable[str]:
        return self.states()

    def _load(self, found: Mapping[str, Tensor]) -> None:
        own = self.states()
        if any(own.get(name) is not value for name, value in found.items()):  # else the module has taken them
            self.reset(found)


class _InFile:
    """A weight of a file that is read, not decoded, as :class:`UnmadeWeight` asks for it."""

    most: int | None = BAND

    def __init__(self, record: WeightRecord) -> None:
        self.record = record

    def made(self) -> Tensor:
        """The weight."""
        return self.record.decode()

    def factors(self, grouped: bool) -> tuple[Sequence[Factor], Mapping[str, State]]:
        """Of its matrix."""
        stored = Stored.of(self.record.view, self.record)
        return stored.factors(grouped), stored.open()


def undecoded(archive: Archive) -> OrderedDict[str, Tensor]:
    """The state dict of an archive as :meth:`Archive.decode` gives it, but with weights that are not made.

    Whatever reads the values of one has it made; live modules take the record that it carries.
    """
    tensors = archive.decode_others()
    for record in archive.weights:
        weight = UnmadeWeight(_InFile(record), record.view.shape, record.view.dtype, torch.device('cpu'))
        setattr(weight, RECORD, record)
        tensors.update(dict.fromkeys((record.view.name, *record.view.aliases), weight))
    return OrderedDict((key, tensors[key]) for key in archive.keys)


def make_compressed(
    model: nn.Module,
    *,
    cache: str | int = CACHE,
    include: Sequence[str] = ('*',),
    exclude: Sequence[str] = (),
    views: Sequence[WeightView] | None = None,
) -> list[str]:
    """Make modules hold the payloads of their weights from the next ``.riem`` file that is loaded, in place.

    Until then they hold the weights that they have. The model is for running: parameters that it keeps train no worse,
    but a call in training mode with gradients is refused.

    Args:
        model: any module. A call of it is one run: weights that were decoded are let go when it returns.
        cache: the most that decoded weights may take within a run, ``'32MB'`` or a number of bytes.
        include, exclude: glob patterns on state-dict keys.
        views: the weights, in place of patterns; those that the model does not have as parameters of that shape are
            left out.

    Returns:
        Keys of the weights that were replaced.

    Raises:
        RiemError: a pattern matches nothing, or the size is none.
    """
    decoded = DecodedWeights(size_of(cache))
    owners = {owner.name: owner for owner in parameter_owners(model)}
    replaced = []
    for view in find_weights(model, include, exclude) if views is None else views:
        places = [owners[key] for key in (view.name, *view.aliases) if key in owners]
        if not places or any(isinstance(place.module, nn.RNNBase) for place in places):  # which keeps its parameters
            continue
        start = getattr(places[0].module, places[0].attribute)
        if tuple(start.shape) != view.shape:  # whoever loads the file says so
            continue
        in_bands = all(place.attribute == 'weight' and isinstance(place.module, APPLIED) for place in places)
        held = CompressedWeight(view, start, decoded, in_bands)
        for place in places:
            if place.module._parameters.get(place.attribute) is not None:  # so it is where the whole module is shared
                attach(place.module, place.attribute, held)
        replaced.append(view.name)
    decoded.watch(model)
    return replaced


def load_compressed(model: nn.Module, archive: Archive, cache: str | int = CACHE) -> OrderedDict[str, Tensor]:
    """Make a model ready to hold the weights of an archive compressed; returns the state dict to load into it."""
    make_compressed(model, cache=cache, views=[record.view for record in archive.weights])
    return undecoded(archive)
