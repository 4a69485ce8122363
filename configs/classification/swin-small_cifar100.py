"""A small Swin Transformer (of mmdet) on CIFAR-100: patches of 2 x 2, windows of 4 x 4."""

_base_ = ['_base_/runtime.py', '_base_/cifar100.py', '_base_/adamw.py']

model = dict(
    type='mmriem.ImageClassifier',
    backbone=dict(
        type='mmdet.SwinTransformer',
        pretrain_img_size=32,
        patch_size=2,
        strides=(2, 2, 2),
        embed_dims=48,
        depths=(2, 4, 2),
        num_heads=(3, 6, 12),
        out_indices=(2,),
        window_size=4,
        drop_path_rate=0.1,
        convert_weights=False,
    ),
    head=dict(type='mmriem.LinearHead', in_channels=192, num_classes=100),
    data_preprocessor=_base_.data_preprocessor,
)
