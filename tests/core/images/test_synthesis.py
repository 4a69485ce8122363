"""Images that are optimised until the norms of a network see what they have seen in training."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from mmriem.core.errors import RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.execution.journal import Journal
from mmriem.core.images import synthesis
from mmriem.core.images.probe import ImageProbe
from mmriem.core.images.procedural import Style, procedural_images
from mmriem.core.images.style_search import distance
from mmriem.core.images.synthesis import Move, RandomClasses, planned_steps, synthesise

BRIGHT = Style(colour=0.4, light=0.1)
START = procedural_images(6, 24, 24, seed=3)


@pytest.fixture
def network():
    """A network whose norms have seen bright images of little contrast."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, 2)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    made = nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.BatchNorm2d(16), nn.ReLU(), head)
    for module in made:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    made.train()(pixels_of(procedural_images(32, 24, 24, 9, BRIGHT)))
    return made.eval()


def pixels_of(images):
    return images.float() / 255


def run(model, pixels, first):
    return [model(pixels)]


def nothing(outputs, first, move):
    return None


def made(network, steps=15, batch=2, output_loss=nothing, start=START, **options):
    return synthesise(network, start, run, output_loss, steps, batch, **options)


# ---- what the images become


def test_the_norms_see_what_they_saw_in_training(network):
    before, after = (distance(network, ImageProbe(pixels_of(images))) for images in (START, made(network, 60)))
    assert after < 0.15 * before


def test_images_are_bytes_of_the_same_shape_and_not_those_of_the_start(network):
    images = made(network)
    assert images.dtype == torch.uint8 and images.shape == START.shape
    assert all((one != other).any() for one, other in zip(images, START))


def test_what_is_to_be_seen_is_seen():
    names_colours = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    names_colours[0].running_mean.copy_(torch.tensor([0.4, 0.5, 0.6]))
    names_colours[0].running_var.fill_(0.01)
    names_colours.add_module('rest', nn.Linear(3, 3))
    nn.init.eye_(names_colours.rest.weight)
    wanted = RandomClasses(6, seed=0)
    before, after = (
        float(wanted(run(names_colours, pixels_of(images), 0), 0, Move(0, 0, False)).detach())
        for images in (START, made(names_colours, 40, output_loss=wanted))
    )
    assert after < 0.8 * before


@pytest.mark.parametrize('count', [8, 12])
def test_every_class_is_wanted_alike_often(count):
    logits = torch.eye(4)[torch.arange(count) % 4] * 0
    wanted = torch.zeros(4)
    for number in range(count):
        for label in range(4):
            sure = logits[:1].clone()
            sure[0, label] = 50.0
            wanted[label] += float(RandomClasses(count, 5)([sure], number, Move(0, 0, False))) < 1
    assert int(wanted.sum()) == count and wanted.max() - wanted.min() <= 1


@pytest.mark.parametrize('outputs', [[], [torch.zeros(2, 3, 4)], [torch.zeros(2, 1)], [torch.zeros(2, 3)] * 2])
def test_other_outputs_than_those_of_a_classifier_want_nothing(outputs):
    assert RandomClasses(2, 0)(outputs, 0, Move(0, 0, False)) is None


# ---- the loss


def test_the_divergence_is_that_of_normal_distributions_on_average_over_norms():
    values = [torch.randn(50, 2, dtype=torch.float64) * 2 + 1, torch.randn(50, 3, dtype=torch.float64) * 0.5]
    sums = torch.cat([torch.stack([x.sum(0), x.square().sum(0), torch.full((x.shape[1],), 50.0)], 1) for x in values])
    unseen = torch.zeros(4, 3)
    weights = torch.cat([torch.full((count,), 1 / count) for count in (2, 3, 4)])
    means = [
        kl_divergence(Normal(x.mean(0), x.std(0, unbiased=False)), Normal(torch.tensor(0.0), torch.tensor(1.0))).mean()
        for x in values
    ]
    found = synthesis.divergence(torch.cat([sums, unseen]), weights)
    assert float(found) == pytest.approx(float(sum(means) / 2), rel=1e-3)


def test_sums_of_batches_add_up_to_those_of_all_images_and_of_all_calls(network):
    twice = nn.Sequential(network[0], network[1])
    watched = synthesis._Watched(copy.deepcopy(twice))
    watched.model(pixels_of(START))
    whole = watched.sums()
    for part in (START[:2], START[2:]):
        watched.model(pixels_of(part))
    assert torch.allclose(watched.sums(), whole, rtol=1e-4)
    assert watched.sums()[:, 2].eq(0).all()


def test_gradients_through_the_moments_are_those_of_autograd():
    values = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(synthesis._Moments.apply, values)


def test_a_move_shifts_and_mirrors():
    images = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(Move(1, 0, False)(images)[0, 0, 0], images[0, 0, 2])
    assert torch.equal(Move(0, 1, True)(images)[0, 0, 0], torch.tensor([2.0, 1.0, 0.0, 3.0]))
    assert Move.drawn(56, 56, (1, 2)) == Move.drawn(56, 56, (1, 2)) != Move.drawn(56, 56, (1, 3))


# ---- always the same


@pytest.mark.parametrize('threads', [2, 3])
def test_the_images_do_not_depend_on_the_threads(network, threads):
    assert torch.equal(made(network, 5, executor=Executor(threads)), made(network, 5))


def test_another_seed_gives_other_images(network):
    assert not torch.equal(made(network, 5), made(network, 5, seed=1))


def test_the_network_is_left_as_it_was(network):
    network.train()
    before = copy.deepcopy(network.state_dict())
    made(network, 2)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


# ---- journal and progress


@pytest.mark.parametrize('lost', [0, 1, 3])
def test_images_of_a_journal_are_not_made_again(network, tmp_path, lost):
    journal, calls = Journal(tmp_path / 'journal'), []
    journal.begin({})

    def counted(model, pixels, first):
        calls.append(first)
        return run(model, pixels, first)

    first = synthesise(network, START, counted, nothing, 3, 2, executor=Executor(1, journal=journal))
    assert len(calls) == 3 * 4 and len(journal) == 3
    for path in sorted(journal.folder.glob('*.piece'))[:lost]:
        path.unlink()
    again = synthesise(network, START, counted, nothing, 3, 2, executor=Executor(1, journal=journal))
    assert torch.equal(again, first) and len(calls) == 3 * 4 * (1 + bool(lost))


def test_progress_reaches_the_end(network):
    shares = []
    made(network, 4, on_progress=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


# ---- how many steps


def test_steps_are_those_that_are_asked_for_or_as_many_as_the_time_allows(network):
    steps = [planned_steps(network, steps, START, run, lambda: 1) for steps in (0, 7, None)]
    assert steps == [0, 7, synthesis.MOST_STEPS]
    assert planned_steps(network, None, START, run, lambda: int(synthesis.MAX_MACS / 6 / 20)) == 20
    assert planned_steps(network, None, START, run, lambda: int(synthesis.MAX_MACS)) == 0


def test_a_network_whose_norms_tell_nothing_has_no_steps():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert planned_steps(plain, None, START, run, lambda: 1) == planned_steps(plain, 0, START, run, lambda: 1) == 0
    with pytest.raises(RiemError, match='synthesis 5: expected norms with statistics'):
        planned_steps(plain, 5, START, run, lambda: 1)


def cut_off(model, pixels, first):
    return run(model, pixels.detach(), first)


def failing(model, pixels, first):
    raise ValueError('no gradients here')


@pytest.mark.parametrize('way', [cut_off, failing])
def test_a_network_without_gradients_to_the_pixels_has_no_steps(network, way):
    assert planned_steps(network, None, START, way, lambda: 1) == 0
    with pytest.raises(RiemError, match='synthesis 5: expected gradients'):
        planned_steps(network, 5, START, way, lambda: 1)


def test_less_than_no_steps_are_an_error(network):
    with pytest.raises(RiemError, match='synthesis -1: expected 0'):
        planned_steps(network, -1, START, run, lambda: 1)
