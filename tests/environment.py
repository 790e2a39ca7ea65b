"""The environment of every test, set before anything reads it (pytest loads this by -p in pyproject.toml)."""

import os
from contextlib import suppress

import torch

# The tests speak to no hub, and a developer's own settings must not reach them.
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in [name for name in os.environ if name.startswith("E5_")]:
    del os.environ[_name]

# The models of most tests are tiny: several threads wait longer for one another than they compute, on a busy machine
# five times as long. Tests of what threads may change use the fixture `all_threads`.
ALL_THREADS = torch.get_num_threads()
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run on the CPU

with suppress(ImportError):  # the GPU tests also run where hypothesis is not installed
    from hypothesis import settings

    settings.register_profile("no deadline", deadline=None)  # no test asserts a time, also on a busy machine
    settings.load_profile("no deadline")
