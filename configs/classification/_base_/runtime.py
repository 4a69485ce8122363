"""What every classifier has: how it is evaluated, seeds, logs."""

test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='mmriem.Accuracy', topk=(1, 5))

default_scope = 'mmengine'
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
log_processor = dict(by_epoch=True)
log_level = 'INFO'
randomness = dict(seed=0)
