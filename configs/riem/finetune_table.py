"""What tools/measure/finetune_table.py runs; the demo set is made by tools/maintain/make_digits.py.

At about 1.2 bits per weight little is lost, so a lower rate shows how much comes back.
"""


def schedule(epochs, rate, factor):
    """Adam without decay, short warm-up, cosine; `factor` on the rate of what a lattice trains."""
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': 100,
        'optim_wrapper.optimizer': dict(type='AdamW', lr=rate, weight_decay=0.0),
        'optim_wrapper.paramwise_cfg': dict(
            custom_keys={'riem': dict(lr_mult=factor)},
            bypass_duplicate=True,  # heads share layers between levels
        ),
        'param_scheduler': [
            dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
            dict(type='CosineAnnealingLR', T_max=epochs, end=epochs, by_epoch=True, convert_to_iter_based=True),
        ],
        'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
        'log_level': 'INFO',
    }


detectors = dict(
    gfl=dict(config='configs/demo/gfl_r18_fpn_digits.py', checkpoint='demo/gfl_r18_fpn_digits.pth'),
    swin=dict(config='configs/demo/faster-rcnn_swin_fpn_digits.py', checkpoint='demo/faster-rcnn_swin_fpn_digits.pth'),
    retinanet=dict(
        config='../shared/data/detectors/retinanet_r18_bccd.py',
        checkpoint='../shared/data/detectors/retinanet_r18_bccd.pth',
    ),
    bccd_swin=dict(
        config='../shared/data/detectors/faster-rcnn_swin_bccd.py',
        checkpoint='../shared/data/detectors/faster-rcnn_swin_bccd.pth',
    ),
)
how = dict(
    steps=('frozen', 1e-3, 0.3),
    integers=('straight_through', 1e-3, 15.0),
    gently=('straight_through', 2e-4, 75.0),  # the same for integers, less for norms and biases
)


def digits(count):
    return {'train_dataloader.batch_size': 4, 'train_dataloader.dataset.indices': count}  # of 2000 images


bccd = {'train_dataloader.batch_size': 4, 'train_dataloader.dataset.times': 1}  # each of the 292 images once
runs = [
    dict(
        name=f'{detector}_{kind}_{bits:g}',
        bits=bits,
        riem=dict(representation='lattice', integers=how[kind][0]),
        options={**schedule(epochs, *how[kind][1:]), **options},
        **detectors[detector],
    )
    for detector, kind, bits, epochs, options in (
        ('gfl', 'gently', 1.2, 2, digits(2000)),
        ('gfl', 'integers', 0.5, 1, digits(1000)),
        ('gfl', 'steps', 0.5, 1, digits(500)),
        ('swin', 'gently', 1.2, 2, digits(2000)),
        ('swin', 'gently', 0.5, 1, digits(1000)),
        ('retinanet', 'integers', 0.3, 2, bccd),
        ('retinanet', 'gently', 1.2, 2, bccd),
        ('bccd_swin', 'gently', 0.3, 3, bccd),
        ('bccd_swin', 'gently', 1.2, 2, bccd),
    )
]
