"""What arithmetic a machine has, by the flags of its CPU and the environment."""

import os
import subprocess
import sys

import pytest
import torch

from mmriem.core.execution.environment import arithmetic, onednn_level

OLD = {'sse4_1', 'avx', 'avx2'}
SERVER = OLD | {'avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512_vnni'}


@pytest.mark.parametrize(
    'flags, limits, level',
    [
        (set(), {}, ''),
        ({'sse4_1'}, {}, 'SSE41'),
        (OLD, {}, 'AVX2'),
        (OLD | {'avx_vnni'}, {}, 'AVX2_VNNI'),
        (SERVER, {}, 'AVX512_CORE_VNNI'),
        (SERVER | {'avx_vnni', 'avx512_bf16'}, {}, 'AVX512_CORE_BF16'),
        (SERVER, {'ONEDNN_MAX_CPU_ISA': 'AVX2'}, 'AVX2'),
        (SERVER, {'DNNL_MAX_CPU_ISA': 'avx512_core'}, 'AVX512_CORE'),
        (OLD, {'ONEDNN_MAX_CPU_ISA': 'AVX512_CORE'}, 'AVX2'),
        (SERVER, {'ONEDNN_MAX_CPU_ISA': 'ALL'}, 'AVX512_CORE_VNNI'),
    ],
)
def test_the_level_of_onednn(flags, limits, level):
    assert onednn_level(flags, limits) == level


def test_torch_and_its_level_are_named():
    found = arithmetic('cpu')
    assert found['torch'] == torch.__version__ and found['CPU capability'] == torch.backends.cpu.get_cpu_capability()
    assert all(isinstance(value, str) and value for value in found.values()) and 'GPU' not in found


def test_environment_variables_that_lower_the_level_are_seen():
    program = "from mmriem.core.execution.environment import arithmetic; print(*arithmetic('cpu').values())"
    lower = {'ATEN_CPU_CAPABILITY': 'default', 'ONEDNN_MAX_CPU_ISA': 'SSE41', 'MKL_CBWR': 'COMPATIBLE'}
    told = [
        subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env={**os.environ, **more})
        for more in ({}, lower)
    ]
    as_it_is, lowered = (done.stdout.strip() for done in told)
    assert as_it_is != lowered and lowered.endswith('COMPATIBLE'), told
