"""The search for unsafe code finds it, leaves safe code alone, and finds none in the project."""

from pathlib import Path

import pytest

from tests.test_imports import ROOT, SOURCES
from tests.unsafe_code import unsafe_places


@pytest.mark.parametrize(
    "source",  # is parsed, never run
    [
        "import pickle",
        "import pickle as p\np.loads(x)",
        "from pickle import loads",
        "import _pickle",
        "import cloudpickle",
        "import dill",
        "import joblib",
        "import marshal\nmarshal.loads(x)",
        "from marshal import loads as safe",
        "import shelve",
        "import importlib\nimportlib.import_module('pickle')",
        "__import__('pickle')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "from torch import load as safe_load\nsafe_load('x')",
        "import torch\nread = torch.load",
        "import functools, torch\nfunctools.partial(torch.load, 'x')",
        "import torch\ntorch.save(x, 'x')",
        "import torch\ntorch.jit.load('x')",
        "import torch\ntorch.hub.load('x', 'y')",
        "load('x', weights_only=False)",
        "load('x', weights_only=flag)",
        "eval('1')",
        "exec('1')",
        "run = eval",
        "import builtins\nbuiltins.exec('1')",
        "compile('1', 'x', 'exec')",
        "import os\nos.system('ls')",
        "from os import system as run\nrun('ls')",
        "import os\nos.popen('ls')",
        "import os\ngetattr(os, 'system')('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run(['ls'], shell=flag)",
        "import subprocess\nsubprocess.run('ls')",
        "import subprocess as sp\nsp.Popen(f'ls {x}')",
        "from subprocess import check_output\ncheck_output('ls ' + x)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "import pandas\npandas.read_pickle('x')",
        "import tarfile\ntarfile.open('x').extractall()",
        "tar.extract('x')",
        "import shutil\nshutil.unpack_archive('x')",
        "import yaml\nyaml.unsafe_load('x')",
        "import yaml\nyaml.full_load('x')",
        "import yaml\nyaml.load('x')",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "import yaml\nyaml.load('x', Loader=yaml.UnsafeLoader)",
        "import yaml as y\ny.load('x', y.FullLoader)",
        "from yaml import load\nload('x')",
        "import yaml\nyaml.load_all('x', yaml.Loader)",
        "import yaml\nyaml.load('x', _StrictLoader)",
        "import yaml\nclass _StrictLoader(yaml.loader.Loader): pass\nyaml.load('x', _StrictLoader)",
        "import yaml\nyaml.loader.UnsafeLoader('x').get_data()",
        "from yaml.constructor import UnsafeConstructor",
        "from yaml import loader\nloader.FullLoader('x').get_data()",
        "import yaml\nclass A(yaml.SafeLoader, B): pass\nyaml.load('x', A)",
        "import webdataset as wds\nwds.WebDataset('x').decode()",
        "import webdataset as wds\nwds.WebDataset('pipe:cat x')",
        "from ray import cloudpickle\ncloudpickle.loads(x)",
        "import ray\nray.cloudpickle.loads(x)",
        "import torch\ntorch.serialization.pickle.loads(x)",
        "from multiprocessing.reduction import ForkingPickler",
        "import numpy as np\nnp.load('x', None, True)",
        "import numpy as np\nnp.lib.format.read_array(f, True)",
        "import torch\ngetattr(torch, 'load')('x')",
        "load('x', **{'weights_only': False})",
        "import torch\nt = torch\nt.load('x')",
        "import torch\nclass A:\n    m = torch.load",
        "import yaml\n(y := yaml).unsafe_load('x')",
        "from torch import *\nload('x')",
        "import importlib\nimportlib.import_module('torch.load')",
        "import subprocess\nsubprocess.run(c, **{'shell': True})",
        "from subprocess import Popen\nPopen(c, -1, None, None, None, None, None, True, True)",
        "import subprocess\nsubprocess.run(args='ls ' + x)",
        "import subprocess\nsubprocess.run(['sh', '-c', x])",
        "import subprocess\nsubprocess.run(x, executable='/bin/bash')",
        "import os\nos.execvp('sh', ['sh', '-c', x])",
        "import os\nos.spawnlp(os.P_WAIT, 'sh', 'sh', '-c', x)",
        "import os\nos.posix_spawn('/bin/sh', ['sh', '-c', x], {})",
        "import pty\npty.spawn('sh')",
        "loop.subprocess_shell(p, 'ls')",
        "f = tar.extractall\nf()",
        "getattr(tar, 'extractall')()",
        "import operator\noperator.methodcaller('extractall')(tar)",
        "tar._extract_member(m, p)",
        "__builtins__['eval']('1')",
        "globals()['eval']('1')",
        "getattr(__builtins__, 'eval')('1')",
        "import runpy\nrunpy.run_path('x')",
        "import code\ncode.InteractiveInterpreter().runsource('x')",
        "import yaml\nyaml.SafeLoader.add_constructor('!x', f)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(source: str) -> None:
    assert unsafe_places(source)


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load('x')\nyaml.load('x', yaml.SafeLoader)",
        "import yaml\nclass A(yaml.SafeLoader): pass\nyaml.load('x', A)",
        "import subprocess\nsubprocess.run(['ls'])\nsubprocess.run(command)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "b'x'.decode()",
        "model.eval()\nself.load('x')\nimport json\njson.load(file)",
        "import re\nre.compile('x')",
        "error.code\ncode = 2\ncode + 1",
        "import os\nos.path.join('sh', 'x')",
        "f(**{'other': 1})\nvalues['load']",
    ],
)
def test_the_search_leaves_safe_code_alone(source: str) -> None:
    assert unsafe_places(source) == []


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_nothing_unsafe_is_used(file: Path) -> None:
    assert unsafe_places((ROOT / file).read_text(encoding="utf-8")) == []
