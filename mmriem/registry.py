"""Registries of mmriem, children of MMEngine's: `type='mmriem.NAME'` in a config needs no import beside it.

MMEngine imports `mmriem.registry` when it meets the scope `mmriem`, and then the `locations`.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

__all__ = ['HOOKS', 'MODELS']

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmriem', locations=['mmriem.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmriem', locations=['mmriem.engine'])
