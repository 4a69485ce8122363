"""Images for networks that take one tensor of them: procedural ones, optimised for the network on request."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .core.errors import RiemError
from .core.execution.executor import Executor
from .core.images.probe import ImageProbe, Probe, batch_size, float_tensors, image_count, training_images
from .core.images.procedural import MEAN, PLAIN, STD, Style, procedural_images
from .core.images.style_search import choose_style, few_images
from .core.images.synthesis import RandomClasses, planned_steps, synthesis_share, synthesise
from .core.live.complexity import count_macs
from .core.pipeline.progress import OnProgress

__all__ = ['InputFormat', 'made_probe', 'procedural_probe', 'require_run']


@dataclass(frozen=True, eq=False)
class InputFormat:
    """What a network takes.

    Attributes:
        size: channels (1 or 3), height, width.
        mean, std: ``(channels, 1, 1)`` float32, for values between 0 and 1.
    """

    size: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    @classmethod
    def told(
        cls, size: Sequence[int] | None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> InputFormat:
        """What the user says; mean and std that are not given are ImageNet's, for one channel the mean of those.

        Raises:
            RiemError: it is not said, or no such numbers.
        """
        if size is None:
            raise RiemError(
                "compress: expected input_size=(3, 224, 224) or the like, inputs=..., or metric='identity', found "
                'none; say what the network takes'
            )
        try:
            sizes = tuple(operator.index(length) for length in size)
        except TypeError:
            sizes = ()
        if len(sizes) != 3 or sizes[0] not in (1, 3) or min(sizes) < 1:
            raise RiemError(
                f'input_size: expected (channels, height, width) with 1 or 3 channels, found {size!r}; '
                'give inputs instead'
            )
        channels, height, width = sizes
        shift = _per_channel('mean', MEAN if mean is None else mean, channels)
        return cls((channels, height, width), shift, _per_channel('std', STD if std is None else std, channels))

    def of_channels(self, images: Tensor) -> Tensor:
        """Colour images ``(n, 3, height, width)``, those of one channel by its mean."""
        return images.mean(1, keepdim=True) if self.size[0] == 1 else images

    def normalised(self, pixels: Tensor) -> Tensor:
        """``(n, channels, height, width)``, 0 to 1, as the network takes them."""
        return (pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device)


def procedural_probe(taken: InputFormat, seed: int, count: int = 0, style: Style = PLAIN, batch: int = 0) -> Probe:
    """Procedural images.

    Args:
        taken: by the network.
        seed: of the images.
        count: how many; 0: by their size.
        style: of the images.
        batch: how many run at a time; 0: by their size.
    """
    _, height, width = taken.size
    count = count or image_count(width, height)
    images = taken.of_channels(procedural_images(count, height, width, seed, style).float() / 255)
    said = {
        'kind': 'procedural',
        'seed': seed,
        'size': [width, height],
        'count': count,
        'style': style.describe(),
    }

    def others(steps: int) -> Probe:
        count, batch = training_images(width, height, steps)
        return procedural_probe(taken, seed + 1, count, style, batch)

    return ImageProbe(taken.normalised(images), batch or batch_size(width, height), said, others)


def made_probe(
    model: nn.Module,
    taken: InputFormat,
    synthesis: int | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    device: str | torch.device = 'cpu',
    on_progress: OnProgress | None = None,
) -> Probe:
    """Procedural images in the style that suits the network, optimised for it.

    Args:
        model: the network; it is not changed.
        taken: by the network.
        synthesis: steps to optimise them by; 0: none; None: as many as take minutes, none where there is nothing to
            optimise them for.
        seed: of the images.
        executor: who works.
        device: where.
        on_progress: called with the share done of a whole compression.

    Raises:
        RiemError: the network does not run on such images, or has nothing that these steps could optimise them for.
    """
    executor = executor or Executor()
    require_run(model, procedural_probe(taken, seed, 1))
    few = few_images(taken.size[2], taken.size[1])
    style = choose_style(model, lambda style: procedural_probe(taken, seed, few, style), executor)
    probe = procedural_probe(taken, seed, style=style)
    return _synthetic(model, probe, taken, synthesis, executor, device, on_progress)


def require_run(model: nn.Module, probe: Probe) -> None:
    """Run the network once, so that one which cannot is an error of one sentence.

    Raises:
        RiemError: it cannot, or gives no tensors.
    """
    name, modes = type(model).__name__, [(module, module.training) for module in model.modules()]
    try:
        model.eval()  # which need not give the module back
        with torch.no_grad():
            outputs = probe.run(model, 0, 1)
    except Exception as error:  # whatever a network makes of inputs that it cannot take
        reason = ' '.join(str(error).split()) or 'no reason given'
        raise RiemError(
            f'{name}: expected it to run on {probe.describe()}, found {type(error).__name__}: {reason}; give the '
            "input_size or the inputs that it takes, or metric='identity'"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not outputs:
        raise RiemError(f"{name}: expected tensors as output, found none; use metric='identity'")


def _synthetic(
    model: nn.Module,
    probe: Probe,
    taken: InputFormat,
    steps: int | None,
    executor: Executor,
    device: str | torch.device,
    on_progress: OnProgress | None,
) -> Probe:
    """The images of that probe, optimised for the network; as they are where it tells nothing to optimise for."""
    own = copy.deepcopy(model).to(device)
    own.eval()
    said = probe.describe()
    _, height, width = taken.size
    start = procedural_images(probe.images, height, width, said['seed'], Style.told(said['style']))
    start = taken.of_channels(start.float()).round().to(torch.uint8)

    def run(network: nn.Module, pixels: Tensor, first: int) -> list[Tensor]:
        return list(float_tensors(network(taken.normalised(pixels.to(device)))))

    def advance(done: float) -> None:
        if on_progress:
            on_progress(synthesis_share(steps or 0) * done, 'images')

    steps = planned_steps(own, steps, start, run, lambda: count_macs(own, lambda: probe.run(own, 0, 1)).total)
    if not steps:
        return probe
    classes = RandomClasses(len(start), said['seed'])
    made = synthesise(
        own, start, run, classes, steps, probe.batch, seed=said['seed'], executor=executor, on_progress=advance
    )
    said = {**said, 'kind': 'synthetic', 'steps': steps}
    return ImageProbe(taken.normalised(made.float() / 255), probe.batch, said, probe.others)


def _per_channel(name: str, values: Sequence[float], channels: int) -> Tensor:
    """`(channels, 1, 1)`; for one channel the mean of those of several."""
    try:
        numbers = torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RiemError(f'{name}: expected {channels} numbers, one for each channel, found {values!r}') from error
    if channels == 1:
        return numbers.mean(0, keepdim=True)
    if len(numbers) != channels:
        raise RiemError(f'{name}: expected {channels} numbers, one for each channel, found {len(numbers)}')
    return numbers
