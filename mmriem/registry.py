"""Registries of mmriem, children of MMEngine's: `type='mmriem.NAME'` in a config needs no import beside it.

MMEngine imports `mmriem.registry` when it meets the scope `mmriem`, and then the `locations`. Classifiers need nothing
but mmengine, so the modules that derive from mmdet's are left out where mmdet is not installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry
from torch import nn

from mmriem.core.errors import RiemError

__all__ = ['DATASETS', 'HOOKS', 'METRICS', 'MODELS', 'TRANSFORMS']

PREFIX = 'RieM'


class ModelRegistry(Registry):
    """Also knows `RieMNAME` for every module class `NAME` that any registry of models knows.

    The class is made when it is asked for. `NAME` is looked up as MMEngine looks up a `type`: in the default
    scope and its parents, or in the scope it names (`mmriem.RieMmmpretrain.ConvNeXt`); then in every scope.
    """

    def get(self, key: str) -> Any:
        """The class or function of that name; None where `key` does not begin with `RieM` and is not known.

        Raises:
            RiemError: there is no module class to make `RieMNAME` of.
        """
        name = key.removeprefix(f'{self.scope}.') if key.startswith(f'{self.scope}.') else key
        self.import_from_location()
        if name in self.module_dict or not name.startswith(PREFIX):
            return super().get(key)
        from mmriem.models.module import riem_class  # which registers with this registry

        return riem_class(_stock_class(name[len(PREFIX) :]))


def _stock_class(name: str) -> type[nn.Module]:
    with MMENGINE_MODELS.switch_scope_and_registry(None) as registry:
        found = registry.get(name)
    if found is None:
        elsewhere = [
            child.module_dict[name] for child in MMENGINE_MODELS.children.values() if name in child.module_dict
        ]
        found = elsewhere[0] if elsewhere else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise RiemError(
            f'mmriem.{PREFIX}{name}: expected {PREFIX} and the name of a registered module class, found '
            f'{"no module" if found is None else "something else"} of the name {name!r}; '
            'import its file with custom_imports, or correct the name'
        )
    return found


OF_MMDET = ['mmriem.models'] if find_spec('mmdet') is not None else []

MODELS = ModelRegistry(
    'model', parent=MMENGINE_MODELS, scope='mmriem', locations=['mmriem.classification.classifier', *OF_MMDET]
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmriem', locations=['mmriem.engine'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmriem', locations=['mmriem.classification.datasets'])
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmriem', locations=['mmriem.classification.transforms']
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmriem', locations=['mmriem.classification.metric'])
