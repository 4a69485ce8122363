"""RetinaNet of mmdet whose ResNet-18 and FPN hold states instead of weights.

Made of a trained detector by

python tools/compress.py mmdet::retinanet/retinanet_r18_fpn_1x_coco.py retinanet.pth --out retinanet.riem

and evaluated, or trained on, by this config as by any other:

python tools/test.py THIS_CONFIG retinanet.riem
python tools/train.py THIS_CONFIG --cfg-options load_from=retinanet.riem
"""

_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# how fresh states are made; a .riem file brings its own representation and sizes
riem = dict(representation='sigmoid', ratio=0.19)
model = dict(
    backbone=dict(type='mmriem.RieMResNet', riem=riem, init_cfg=None),  # the pretrained weights are no states
    neck=dict(type='mmriem.RieMFPN', riem=riem),
)
# one state moves many weights: far smaller steps than for weights, and no decay
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.0))
