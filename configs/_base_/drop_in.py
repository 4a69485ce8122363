"""What a config needs to load a .riem file: a reader of such files, and an error where one does not fit the model.

A config names it beside its base and hangs the hook in, since two bases must not both have `default_hooks`:

_base_ = ['mmdet::FOLDER/NAME.py', '../_base_/drop_in.py']
default_hooks = dict(strict_load=_base_.strict_load)
"""

custom_imports = dict(imports=['mmriem.engine'], allow_failed_imports=False)
strict_load = dict(type='mmriem.StrictLoadHook')
