"""tools/maintain/build_mmcv.py: which sources may be read as one, and that they make the same program."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import zipfile

import pytest
import torch


@pytest.fixture(scope='module')
def build_mmcv(tools):
    spec = importlib.util.spec_from_file_location('build_mmcv', tools / 'maintain' / 'build_mmcv.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCES = {
    'main.cpp': '#include <cstdio>\nint up(int); int down(int); int least(int, int);\n'
    'int main() { std::printf("%d %d %d\\n", up(1), down(1), least(3, 2)); }\n',
    'up.cpp': 'template <typename T> static T step(T a) { return a + 10; }\nint up(int a) { return step(a); }\n',
    'down.cpp': 'template <class T> static T step(T a) { return a - 10; }\nint down(int a) { return step(a); }\n',
    'least.cpp': '#define least_of(a, b) ((a) < (b) ? (a) : (b))\nint least(int a, int b) { return least_of(a, b); }\n',
    'names.cpp': '#include <string>\nusing namespace std;\nstring title() { return "t"; }\n',
}


@pytest.fixture
def sources(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in SOURCES]


def test_files_that_define_the_same_name_are_apart_and_what_leaves_a_macro_comes_last(build_mmcv, sources):
    groups = [[path.name for path in group] for group in build_mmcv.grouped(sources, 1)]
    assert sorted(name for group in groups for name in group) == sorted(SOURCES)
    unit = {name: number for number, group in enumerate(groups) for name in group}
    assert unit['up.cpp'] != unit['down.cpp'] and unit['least.cpp'] != unit['names.cpp']
    assert len(groups) == 2
    for group in groups:
        assert not {'least.cpp', 'names.cpp'} & set(group[:-1])
    assert build_mmcv.grouped(reversed(sources), 1) == build_mmcv.grouped(sources, 1)


@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
@pytest.mark.parametrize('units', [1, 3])
def test_joined_sources_make_the_same_program(build_mmcv, sources, tmp_path, units):
    joined = build_mmcv.join(map(str, sources), tmp_path / 'units', units)
    for program, parts in (('apart', sources), ('joined', joined)):
        subprocess.run(['g++', '-o', tmp_path / program, *parts], check=True)
    printed = [subprocess.check_output([tmp_path / program]) for program in ('apart', 'joined')]
    assert printed[0] == printed[1] == b'11 -9 2\n'


def test_what_is_compiled_for_other_devices_only_does_not_count(build_mmcv):
    text = '#ifdef MMCV_WITH_DIOPI\nusing a::b;\n#endif\n#if X\nint f() { return 1; }\n#else\nint g() {}\n#endif\n'
    compiled = build_mmcv.compiled_text(text + '// int h() {}\n/* int i() {} */\nconst char* j = "// no comment";\n')
    assert not build_mmcv.leaves_something(compiled)
    assert build_mmcv.defined_names(compiled) == {'f', 'g', 'j'}


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('int f(int a);', set()),
        ('template <typename T, int N>\nvoid f(const T *a,\n  T b[N]) {\n  if (a) { g(); }\n}', {'f'}),
        ('namespace x { struct P { int f() { return 1; } }; enum Kind { ONE }; }', {'P', 'Kind'}),
        ('struct Q;\nclass R : public Q { int a; };', {'R'}),
        ('static const int SIZES[2] = {1, 2};\nint g() { return 0; }', {'SIZES', 'g'}),
    ],
)
def test_names_that_a_file_defines(build_mmcv, text, names):
    assert build_mmcv.defined_names(text) >= names
    assert not build_mmcv.defined_names(text) & {'a', 'if'}


def test_wheels_are_kept_apart_by_torch_and_found_by_version(build_mmcv, tmp_path, monkeypatch):
    here = build_mmcv.built_for('joined')
    assert f'torch{torch.__version__}-' in here and here != build_mmcv.built_for('ordinary')
    monkeypatch.setattr(torch, '__version__', '2.1.2')
    assert build_mmcv.built_for('joined') != here
    wheel = tmp_path / 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl'
    wheel.write_bytes(b'')
    assert build_mmcv.find_wheel(tmp_path, 'onedl-mmcv==2.3.6') == wheel
    assert build_mmcv.find_wheel(tmp_path, 'onedl-mmcv==2.3.5') is None
    assert build_mmcv.find_wheel(tmp_path, 'mmcv==2.3.6') is None


def test_optimisation_stays_on_where_flags_are_given(build_mmcv, monkeypatch):
    monkeypatch.setenv('CFLAGS', '-march=x86-64')
    assert {'-march=x86-64', '-g0'} < set(build_mmcv.compiler_flags().split())
    assert any(flag in build_mmcv.compiler_flags().split() for flag in ('-O1', '-O2', '-O3'))


def test_a_wheel_without_the_compiled_module_is_no_success(build_mmcv, tmp_path):
    for name, expected in (('mmcv/ops/nms.py', False), ('mmcv/_ext.cpython-311-x86_64-linux-gnu.so', True)):
        with zipfile.ZipFile(tmp_path / 'a.whl', 'w') as wheel:
            wheel.writestr(name, b'')
        assert build_mmcv.has_ops(tmp_path / 'a.whl') is expected


PACKAGE = {
    'setup.py': 'from setuptools import Extension, setup\n'
    "setup(name='mmcv', version='9.0', ext_modules=[Extension('mmcv._ext', ['one.cpp', 'two.cpp'], language='c++')])\n",
    'one.cpp': '#include <Python.h>\nstatic PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", 0, -1, 0};\n'
    'PyMODINIT_FUNC PyInit__ext() { return PyModule_Create(&module); }\n'
    '#define MAKE(name) static int name() { return 1; }\nMAKE(same)\n#undef MAKE\nint one() { return same(); }\n',
    'two.cpp': '#define DEFINE(name) static int name() { return 2; }\nDEFINE(same)\n#undef DEFINE\n'
    'int two() { return same(); }\n',
}
"""Two files that define one name, which cannot be seen without a preprocessor."""


@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
def test_where_the_units_do_not_compile_the_ordinary_way_is_gone(build_mmcv, tmp_path, monkeypatch, capsys):
    (tmp_path / 'mmcv-9.0').mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / 'mmcv-9.0' / name).write_text(text)
    archive = shutil.make_archive(str(tmp_path / 'mmcv-9.0'), 'gztar', tmp_path, 'mmcv-9.0')
    monkeypatch.setattr(build_mmcv, '_has_gpu', lambda: False)
    arguments = [archive, '--units', '1', '--cache', str(tmp_path / 'cache'), '--log', str(tmp_path / 'log')]
    assert build_mmcv.main(arguments) == 0
    said = capsys.readouterr()
    assert 'the joined build failed' in said.err and 'redefinition' in (tmp_path / 'log').read_text()
    assert '-ordinary/mmcv-9.0-' in said.out
    assert build_mmcv.main([*arguments, '--way', 'joined']) == 1
