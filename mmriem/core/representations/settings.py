"""Typed settings of an encoded matrix, versioned, with one spelling as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from ..errors import RiemError, brief

S = TypeVar('S', bound='CodecSettings')


class Key(NamedTuple):
    """How a field of settings is spelled as JSON: an integer within bounds.

    Attributes:
        low, high: the least and the greatest value in a file.
        usual: the value of a key that is left out; None for a key that is always there.
        name: of the key, where it is not that of the field.
    """

    low: int
    high: int
    usual: int | None = None
    name: str = ''

    def check(self, representation: str, name: str, value: object) -> None:
        """Raise :class:`RiemError` unless the value is an integer within the bounds."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise RiemError(
                f'setting {name!r} of {representation!r}: expected an integer of {self.low} to {self.high}, '
                f'found {brief(value)}'
            )


@dataclass(frozen=True)
class CodecSettings:
    """What the payload of a matrix is parsed by, beside its shape. A subclass is a frozen dataclass of integers.

    Settings of another version are refused by name, not misread: a representation whose settings change their meaning
    gives its class the next ``version``, which files hold from 2 on.

    Attributes:
        representation: its name.
        keys: for each field.

    Raises:
        RiemError: a value is out of its bounds.
    """

    representation: ClassVar[str]
    version: ClassVar[int] = 1
    keys: ClassVar[Mapping[str, Key]]

    def __post_init__(self) -> None:
        for field, key in self.keys.items():
            value = getattr(self, field)
            if value != key.usual:
                key.check(self.representation, key.name or field, int(value) if value is True else value)

    def to_json(self) -> dict[str, int]:
        """As files and reports hold them: JSON-able, without what is usual."""
        values = {key.name or field: (int(getattr(self, field)), key.usual) for field, key in self.keys.items()}
        version = {'version': self.version} if self.version > 1 else {}
        return {**version, **{name: value for name, (value, usual) in values.items() if value != usual}}

    @classmethod
    def from_json(cls: type[S], data: object) -> S:
        """The inverse of :meth:`to_json`.

        Raises:
            RiemError: settings of another version, a key that is missing or not known, or a value out of its bounds.
        """
        given: dict[str, Any] = dict(data) if isinstance(data, dict) else {}
        version = given.pop('version') if cls.version > 1 and 'version' in given else given.get('version', 1)
        if version != cls.version:
            raise RiemError(
                f'settings of {cls.representation!r}: expected version {cls.version}, found {brief(version)}; '
                'read the file with the version of mmriem that wrote it'
            )
        spelled = {key.name or field: (field, key) for field, key in cls.keys.items()}
        expected = {name for name, (_, key) in spelled.items() if key.usual is None or name in given}
        if not isinstance(data, dict) or set(given) != expected:
            found = list(given) if isinstance(data, dict) else data
            raise RiemError(
                f'settings of {cls.representation!r}: expected the keys {sorted(expected)}, found {brief(found)}'
            )
        for name, value in given.items():
            spelled[name][1].check(cls.representation, name, value)
        return cls(**{spelled[name][0]: value for name, value in given.items()})
