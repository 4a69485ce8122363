"""scikit-learn's handwritten digits, 8 x 8 pixels, enlarged to 28 x 28; nothing is read or downloaded."""

test_pipeline = [dict(type='mmriem.Resize', scale=(28, 28)), dict(type='mmriem.PackImage')]
train_pipeline = [
    dict(type='mmriem.Resize', scale=(28, 28)),
    dict(type='mmriem.RandomCrop', crop_size=28, padding=3),
    dict(type='mmriem.PackImage'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmriem.Digits', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmriem.Digits', split='test', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
data_preprocessor = dict(type='mmengine.ImgDataPreprocessor', mean=[77.8], std=[92.0])
