"""The validation images of ImageNet-1k in `data/imagenet/val/CLASS/*.JPEG`: shorter side 256, middle 224 x 224."""

test_pipeline = [
    dict(type='mmriem.LoadImage'),
    dict(type='mmriem.Resize', scale=256),
    dict(type='mmriem.CenterCrop', crop_size=224),
    dict(type='mmriem.PackImage'),
]
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmriem.ImageFolder', data_root='data/imagenet/', split='val', test_mode=True, pipeline=test_pipeline
    ),
)
data_preprocessor = dict(
    type='mmengine.ImgDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
)
