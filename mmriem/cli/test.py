"""`mmriem test`: evaluate a detector or classifier from a `.riem` or `.pth` file, as mmdet's tools/test.py does.

A checkpoint that does not fit the config is an error, and a `.pth` file is read without running code from it.
"""

from __future__ import annotations

import argparse

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from mmriem.core.errors import RiemError
from mmriem.engine.command_line import add_runner_flags, build_runner, config_from_flags
from mmriem.engine.config import import_path, load_strictly
from mmriem.engine.pipeline import pipeline_steps, type_name

TTA_MODEL = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
TTA_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def pickle_file(name: str) -> str:
    """The type of `--out`."""
    if not name.endswith(('.pkl', '.pickle')):
        raise argparse.ArgumentTypeError(f'expected a .pkl or .pickle file, found {name}')
    return name


EPILOG = """\
examples:
  mmriem test out/ckpt.py out/ckpt.riem                # the compressed one, by the config written beside it
  mmriem test cfg.py ckpt.pth                          # the original
  mmriem test out/ckpt.py out/ckpt.riem --out predictions.pkl --show-dir pictures
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """What the command line may hold."""
    found = argparse.ArgumentParser(
        prog,
        description='Evaluate a detector or classifier from a .riem or .pth file, with the flags of mmdet.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py')
    found.add_argument('checkpoint', help='a .riem or .pth file')
    found.add_argument('--out', type=pickle_file, help='write the predictions to this .pkl file')
    found.add_argument('--show', action='store_true', help='show the predictions in a window')
    found.add_argument('--show-dir', help='draw the predictions into WORK_DIR/TIMESTAMP/SHOW_DIR')
    found.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows an image')
    found.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_runner_flags(found)
    return found


def show_predictions(config: Config, args: argparse.Namespace) -> None:
    """Make the Runner draw what it predicts."""
    if 'visualization' not in config.get('default_hooks', {}):
        raise RiemError(
            f'{args.config}: --show and --show-dir need default_hooks.visualization, found none; '
            "add visualization=dict(type='DetVisualizationHook')"
        )
    from mmdet.engine.hooks.utils import trigger_visualization_hook

    trigger_visualization_hook(config, args)


def augment(config: Config) -> None:
    """Wrap the model for test-time augmentation: `tta_model` and `tta_pipeline`, by default with a flip.

    The flip comes before a padding, because mmdet mirrors boxes back within the image as it was.

    Raises:
        RiemError: the detector has masks, which mmdet cannot merge.
    """
    if _predicts_masks(config):
        raise RiemError('--tta: expected a detector of boxes, found one of masks; evaluate it without --tta')
    if 'tta_pipeline' not in config:
        config.tta_pipeline = _flipped(pipeline_steps(config))
    _use_pipeline(config.test_dataloader.dataset, config.tta_pipeline)
    config.model = ConfigDict(**config.get('tta_model', TTA_MODEL), module=config.model)


def _flipped(steps: list[dict]) -> list[dict]:
    """The steps, their images once as they are and once mirrored."""
    if any(type_name(step) == 'TransformBroadcaster' for step in steps):
        raise RiemError('--tta: expected a detector of images, found one of videos; evaluate it without --tta')
    steps = [{**step, 'type': import_path(step['type']) or step['type']} for step in steps]  # texts, as logs write them
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    packed = dict(type='PackDetInputs', meta_keys=TTA_META)
    steps = steps[:-1]
    first = next((n for n, step in enumerate(steps) if type_name(step).endswith('Pad')), len(steps))
    last = dict(type='TestTimeAug', transforms=[flips, *([step] for step in steps[first:]), [packed]])
    return [*steps[:first], last]


def _use_pipeline(dataset: ConfigDict, steps: list[dict]) -> None:
    """Give a data set these steps, or every one that it wraps; wrappers keep none of their own."""
    inner = [*([dataset.dataset] if 'dataset' in dataset else []), *dataset.get('datasets', [])]
    for wrapped in inner:
        _use_pipeline(wrapped, steps)
    if inner:
        dataset.pop('pipeline', None)
    else:
        dataset.pipeline = steps


def _predicts_masks(config: Config) -> bool:
    """By the model, which has a head for masks, or by what is evaluated: mmdet merges boxes alone."""
    model, evaluators = config.model, config.get('test_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    kinds = [type_name(each) for each in evaluators]
    metrics = [each.get('metric') or () for each in evaluators]
    names = [name for its in metrics for name in ([its] if isinstance(its, str) else its)]
    return (
        'mask_head' in {**model, **(model.get('roi_head') or {})}
        or any('segm' in name for name in names)
        or any('Panoptic' in kind or 'SemSeg' in kind for kind in kinds)
    )


def dump_to(path: str, config: Config) -> DumpResults:
    """What writes the predictions to a file: mmdet's own kind for detectors, as it encodes their masks."""
    if config.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    return DumpResults(out_file_path=path)


def command(args: argparse.Namespace) -> None:
    """Run the evaluation that the command line asks for."""
    config = config_from_flags(args)
    missing = [key for key in ('test_dataloader', 'test_cfg', 'test_evaluator') if config.get(key) is None]
    if missing:
        raise RiemError(f'{args.config}: expected {", ".join(missing)}, found none; name the data to evaluate on')
    config.load_from = args.checkpoint
    config.resume = False
    load_strictly(config)
    if args.show or args.show_dir:
        show_predictions(config, args)
    if args.tta:
        augment(config)
    runner = build_runner(config)
    if args.out is not None:
        runner.test_evaluator.metrics.append(dump_to(args.out, config))
    runner.test()
