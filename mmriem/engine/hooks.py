"""Runner hooks."""

from __future__ import annotations

from mmengine.hooks import Hook

from mmriem.core.errors import RiemError
from mmriem.registry import HOOKS

from .checkpoint import load_into, state_dict_of

__all__ = ['StrictLoadHook']


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Fails when a checkpoint does not fit the model, where the Runner only warns.

    The Runner calls it between reading and loading, so it loads the checkpoint into the model first. See
    `mmriem.engine.checkpoint.load_into` for what counts as a fit.

    Example:
        >>> from mmengine.registry import HOOKS
        >>> default_hooks = dict(strict_load=dict(type='mmriem.StrictLoadHook'))  # in a config
        >>> HOOKS.build(default_hooks['strict_load']).priority
        'VERY_HIGH'
    """

    priority = 'VERY_HIGH'  # before hooks that copy the checkpoint, as EMAHook does

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Load `checkpoint` into `runner.model`.

        Raises:
            RiemError: a tensor is missing, unexpected or of another shape; or training is to resume from a
                file without the state of a training run.
        """
        source = runner._load_from or 'the checkpoint'
        if runner._resume and 'epoch' not in checkpoint.get('meta', {}):
            raise RiemError(
                f'{source}: expected the checkpoint of a training run to resume, found weights only; '
                'train from it with --cfg-options load_from=...'
            )
        load_into(runner.model, state_dict_of(checkpoint, source), source)
