"""What the bytes of a compression depend on besides its input and settings: the arithmetic of the machine.

Sums of products are added up in another order with wider vectors, so metrics and fits differ in their last bits from
one level of a CPU to the next, and then integers do. Decoding has no such sums.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

_ONEDNN_LEVELS = (
    ('SSE41', {'sse4_1'}),
    ('AVX', {'avx'}),
    ('AVX2', {'avx2'}),
    ('AVX2_VNNI', {'avx_vnni'}),
    ('AVX512_CORE', {'avx512f', 'avx512bw', 'avx512vl', 'avx512dq'}),
    ('AVX512_CORE_VNNI', {'avx512_vnni'}),
    ('AVX512_CORE_BF16', {'avx512_bf16'}),
    ('AVX512_CORE_FP16', {'avx512_fp16'}),
    ('AVX512_CORE_AMX', {'amx_tile', 'amx_int8', 'amx_bf16'}),
)
"""Names of oneDNN for what a CPU can do, and the flags of Linux that each one needs beside those before it."""
_BESIDE = {'AVX2_VNNI'}
"""Levels that a later one does not need."""
_ONEDNN_LIMITS = ('ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA')


def arithmetic(device: str) -> dict[str, str]:
    """What pieces of a compression must have in common besides their settings, JSON-able.

    On a CPU the version of torch, the level of its own loops, and those of the libraries that it calls, oneDNN and MKL,
    where the environment variables of the three may lower them: `ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA` and
    `MKL_CBWR`. On a GPU its name, too.

    Args:
        device: where fits and the probe run.
    """
    vendor, flags = _cpu()
    level = onednn_level(flags, os.environ)
    found = {
        'torch': torch.__version__,
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'oneDNN': level or platform.machine(),
        'MKL': os.environ.get('MKL_CBWR') or f'{vendor} {level}'.strip() or platform.machine(),
    }
    if torch.device(device).type == 'cuda':
        found['GPU'] = torch.cuda.get_device_name(device)
    return found


def onednn_level(flags: set[str], environment: Mapping[str, str]) -> str:
    """The level of oneDNN's loops: what the CPU can do, or less where the environment says so; empty if not known.

    >>> onednn_level({'sse4_1', 'avx', 'avx2'}, {})
    'AVX2'
    >>> onednn_level({'sse4_1', 'avx', 'avx2'}, {'ONEDNN_MAX_CPU_ISA': 'avx'})
    'AVX'
    """
    names = [name for name, _ in _ONEDNN_LEVELS]
    limit = next((environment[name].upper() for name in _ONEDNN_LIMITS if environment.get(name)), '')
    highest = names.index(limit) if limit in names else len(names)
    level = ''
    for number, (name, needed) in enumerate(_ONEDNN_LEVELS):
        if number > highest or not needed <= flags:
            if name in _BESIDE:
                continue
            break
        level = name
    return level


def _cpu() -> tuple[str, set[str]]:
    """Maker and flags of the CPU as Linux tells them; nothing elsewhere."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return '', set()
    told: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(':')
        told.setdefault(key.strip(), value.strip())
    return told.get('vendor_id', ''), set(told.get('flags', '').split())
