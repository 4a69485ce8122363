"""A classifier that MMEngine's Runner trains and evaluates, on mmengine alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.registry import MODELS

from .lenet import MLP, LeNet5
from .resnet import SmallImageResNet
from .resnet_cifar import ResNetCIFAR
from .vit import VisionTransformer

__all__ = ['ImageClassifier', 'LinearHead', 'timm']

for network in (LeNet5, MLP, ResNetCIFAR, SmallImageResNet, VisionTransformer):
    MODELS.register_module(module=network)

BACKBONE, HEAD = 'backbone.', 'head.'


@MODELS.register_module()
def timm(model_name: str, **settings: Any) -> nn.Module:
    """A model of timm, with fresh weights: those of a checkpoint are loaded afterwards.

    Args:
        model_name: as `timm.list_models()` has it.
        settings: of `timm.create_model`, such as `num_classes`.

    Raises:
        RiemError: timm is not installed, or has no such model.
    """
    try:
        from timm import create_model
    except ImportError as error:
        raise RiemError(f'timm model {model_name}: timm cannot be imported ({error}); pip install timm') from error
    try:
        return create_model(model_name, pretrained=False, **settings)
    except RuntimeError as error:
        raise RiemError(f'timm model {model_name}: {error}; see timm.list_models()') from error


@MODELS.register_module()
class LinearHead(nn.Module):
    """One linear layer, `fc`, from pooled features `(n, in_channels)` to logits `(n, num_classes)`."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.fc(features)


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A network that tells the class of an image.

    Weights of the bare backbone load, too: of a state dict without a key that begins with `backbone.`, the keys
    `fc.*` are the head's where it has them, and all others the backbone's.

    Args:
        backbone: config of a registered model (`mmriem.ResNetCIFAR`, `mmdet.ResNet`, ...), of `mmriem.timm`, or of
            any callable that makes a module by its import path (`type='package.module.function'`). It returns
            features or logits, `(n, channels)`; feature maps `(n, channels, h, w)`, which are averaged over
            positions; or several of these in a tuple, of which the last one counts.
        head: config of what makes logits of the features, for instance
            `dict(type='mmriem.LinearHead', in_channels=512, num_classes=10)`; None where they are logits already.
        data_preprocessor: config; by default the images are stacked and not normalised.
        label_smoothing: of the loss, the cross entropy.
        init_cfg: see `mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        head: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor or dict(type='mmengine.ImgDataPreprocessor'), init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Identity() if head is None else MODELS.build(head)
        self.label_smoothing = label_smoothing
        self._register_load_state_dict_pre_hook(_name_as_backbone, with_module=True)  # public from torch 2.5 on

    def logits(self, inputs: Tensor) -> Tensor:
        """Normalised images `(n, channels, h, w)` to logits `(n, classes)`.

        Raises:
            RiemError: the backbone returns something else than features.
        """
        features = self.backbone(inputs)
        features = features[-1] if isinstance(features, (tuple, list)) else features
        if features.dim() not in (2, 4):
            raise RiemError(
                f'{type(self.backbone).__name__}: expected features (n, channels) or (n, channels, h, w), '
                f'found shape {tuple(features.shape)}'
            )
        return self.head(features.mean((2, 3)) if features.dim() == 4 else features)

    def forward(self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor') -> Any:
        """What a model of MMEngine does.

        Args:
            inputs: normalised images `(n, channels, h, w)`.
            data_samples: of each, with `gt_label` `(1,)` where a loss is wanted.
            mode: `tensor` gives the logits; `loss` a dict with `loss`; `predict` the data samples with `pred_score`
                `(classes,)`, which sum up to 1, and `pred_label` `(1,)`.

        Raises:
            RiemError: another mode, or a loss without data samples.
        """
        logits = self.logits(inputs)
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            if data_samples is None:
                raise RiemError('mode loss: expected data samples with gt_label, found none; give one for each image')
            labels = torch.cat([sample.gt_label for sample in data_samples]).to(logits.device)
            return {'loss': F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}
        if mode == 'predict':
            return self._predicted(logits, data_samples)
        raise RiemError(f'mode: expected tensor, loss or predict, found {mode!r}')

    @staticmethod
    def _predicted(logits: Tensor, data_samples: list[BaseDataElement] | None) -> list[BaseDataElement]:
        samples = data_samples or [BaseDataElement() for _ in logits]
        for sample, scores in zip(samples, logits.float().softmax(1)):
            sample.pred_score, sample.pred_label = scores, scores.argmax(keepdim=True)
        return samples


def _name_as_backbone(classifier: ImageClassifier, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Give the tensors of a bare network the names that they have here; `rest` is not looked at."""
    keys = [key for key in state_dict if key.startswith(prefix)]
    if not keys or any(key.startswith(prefix + BACKBONE) for key in keys):
        return
    own = {HEAD + name for name in classifier.head.state_dict()}
    for key in keys:
        name = key[len(prefix) :]
        place = HEAD + name if HEAD + name in own else BACKBONE + name
        state_dict[prefix + place] = state_dict.pop(key)
