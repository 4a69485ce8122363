"""What readers call the networks of the benchmark, and its peers."""

NAMES = {
    'retinanet_r18_bccd': 'RetinaNet R18, blood cells',
    'faster-rcnn_swin_bccd': 'Faster R-CNN Swin, blood cells',
    'faster-rcnn_swin_fpn_digits': 'Faster R-CNN Swin, digits (demo)',
    'gfl_r18_fpn_digits': 'GFL R18, digits (demo)',
    'yolox_nano_coco': 'YOLOX-nano, COCO',
    'efficientnet_lite0': 'EfficientNet-Lite0, ImageNet',
    'resnet56': 'ResNet-56, CIFAR-10',
    'resnet20': 'ResNet-20, CIFAR-10',
}
"""Networks in the order of the table, by what a reader calls them."""
PEERS = {'minmax': 'rounding', 'svd': 'SVD', 'hqq': 'HQQ', 'nncodec': 'NNCodec'}
"""The other methods of the table, by what a reader calls them."""
