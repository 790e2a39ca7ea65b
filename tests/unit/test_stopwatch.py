"""The stopwatch counts work inside its blocks only; on a GPU, until the work is done."""

import time

import pytest
import torch

from e5.network.stopwatch import Stopwatch


def test_cpu_time_inside_the_blocks() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.seconds() == 0
    for _ in range(3):
        with watch.running():
            time.sleep(0.02)
        time.sleep(0.1)
    assert 0.06 <= watch.seconds() < 0.3


@pytest.mark.gpu
def test_gpu_time_lasts_until_the_work_is_done() -> None:
    matrix, watch = torch.ones(8192, 8192, device="cuda"), Stopwatch(torch.device("cuda", 0))
    matrix @ matrix
    torch.cuda.synchronize()
    started = time.perf_counter()
    with watch.running():
        for _ in range(20):
            matrix @ matrix
    launched = time.perf_counter() - started
    seconds = watch.seconds()
    assert launched < seconds <= time.perf_counter() - started
