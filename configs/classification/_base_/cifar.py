"""What CIFAR-10 and CIFAR-100 share: 32 x 32 pixels, crops and flips for training, ImageNet's mean and std."""

test_pipeline = [dict(type='mmriem.Resize', scale=(32, 32)), dict(type='mmriem.PackImage')]
train_pipeline = [
    dict(type='mmriem.RandomCrop', crop_size=32, padding=4),
    dict(type='mmriem.RandomFlip', prob=0.5),
    dict(type='mmriem.PackImage'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='test', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
data_preprocessor = dict(
    type='mmengine.ImgDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
)
