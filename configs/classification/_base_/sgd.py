"""The usual training of ResNets on CIFAR: SGD with Nesterov's momentum, 200 epochs, cosine to zero."""

max_epochs = 200
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
val_evaluator = dict(type='mmriem.Accuracy', topk=(1, 5))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=400),
    dict(type='CosineAnnealingLR', T_max=max_epochs, begin=0, end=max_epochs, convert_to_iter_based=True),
]
