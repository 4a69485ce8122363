"""MNIST in `data/mnist/`: the four idx files, gzipped or not."""

data_root = 'data/mnist/'
test_pipeline = [dict(type='mmriem.Resize', scale=(28, 28)), dict(type='mmriem.PackImage')]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmriem.MNIST', data_root=data_root, split='train', pipeline=test_pipeline),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmriem.MNIST', data_root=data_root, split='test', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
data_preprocessor = dict(type='mmengine.ImgDataPreprocessor', mean=[33.32], std=[78.57])
