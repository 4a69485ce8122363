"""Trained networks on real images, and the demo detectors, whose data `python tools/maintain/make_digits.py` makes.

A method has a list of settings; a network may have its own, by the name of the method. `qp` of NNCodec is an absolute
step for all weights, so it depends on their spread; it is chosen for 1 to 4 bits per weight. The lattice's rates are
close together where its accuracy comes within one point of the original. Norms and biases are tuned where images are so
small that it takes seconds.
"""

root = '../shared/data/'
nncodec_cifar = [dict(qp=qp, bnf=True, nonweight_qp=-40) for qp in (-15, -18, -20, -21, -22, -24)]
nncodec_lite = [dict(qp=qp, bnf=True, nonweight_qp=-40) for qp in (-24, -28, -32, -36)]
nncodec_yolox = [dict(qp=qp) for qp in (-20, -24, -28, -32, -36)]


def lattice(*rates, **others):
    return [dict(bits=bits, **others) for bits in rates]


yolox_rates = lattice(1.0, 2.0, 3.0, 3.4, 3.6, 3.8, 4.0, 4.2, 4.4, 4.6)

networks = [
    dict(
        name=name,
        type='classifier',
        architecture=name,
        checkpoint=f'{root}cifar10/{name}.pth',
        images=f'{root}cifar10/test.npz',
        settings={'nncodec': nncodec_cifar, 'mmriem lattice': lattice(*rates, tuning=300) + lattice(*plain)},
    )
    for name, rates, plain in (
        ('resnet20', (1.0, 1.3, 1.5, 1.6, 1.7, 1.8, 2.0, 3.0), ()),
        ('resnet56', (1.0, 1.2, 1.3, 1.4, 1.5), ()),
    )
]
networks += [
    dict(
        name='efficientnet_lite0',
        type='classifier',
        architecture='efficientnet_lite0',
        checkpoint=f'{root}imagenet_mini/efficientnet_lite0.pth',
        images=f'{root}imagenet_mini/val',
        settings={
            'nncodec': nncodec_lite,
            'mmriem lattice': lattice(2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
        },
    )
]
networks += [
    dict(name=name, type='detector', config=f'{root}detectors/{name}.py', settings=settings)
    for name, settings in (
        ('yolox_nano_coco', {'nncodec': nncodec_yolox, 'mmriem lattice': yolox_rates}),
        ('retinanet_r18_bccd', {'mmriem lattice': lattice(0.4, 0.53, 0.6, 0.7, 0.8, 1.0, 2.0)}),
        ('faster-rcnn_swin_bccd', {'mmriem lattice': lattice(0.3, 0.4, 0.5, 0.6, 0.8, 1.0)}),
    )
]
networks += [
    dict(
        name=name,
        type='detector',
        config=f'configs/demo/{name}.py',
        checkpoint=f'demo/{name}.pth',
        settings={'mmriem lattice': lattice(*rates, tuning=300)},
    )
    for name, rates in (
        ('gfl_r18_fpn_digits', (0.5, 0.7, 1.0, 1.3, 2.0)),
        ('faster-rcnn_swin_fpn_digits', (0.4, 0.5, 0.6, 1.0)),
    )
]

methods = [
    dict(type='fp16', settings=[dict()]),
    dict(type='minmax', settings=[dict(bits=bits) for bits in (3, 4, 5, 6, 8)]),
    dict(type='svd', settings=[dict(bits=6)]),
    dict(type='hqq', settings=[dict(bits=bits) for bits in (4, 8)]),
    dict(type='nncodec', settings=[dict(qp=qp, bnf=True) for qp in (-18, -22, -26, -30)]),
    dict(
        name='mmriem lattice',
        type='mmriem',
        settings=lattice(0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0),
    ),
    dict(name='mmriem default', type='mmriem', settings=[dict()]),
    dict(name='mmriem bilinear', type='mmriem', settings=[dict(representation='bilinear', ratio=0.1)]),
    dict(name='mmriem sigmoid', type='mmriem', settings=[dict(representation='sigmoid', ratio=0.1, effort=0.25)]),
]
