"""The training loop: AdamW with a linear schedule, checkpoints, and exact resumption after an interruption."""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import Config
from training.network import Weights

Losses = dict[str, Tensor]
LossFunction = Callable[[dict[str, Tensor]], Losses]
"""The losses of one batch, from the parameters."""
Check = Callable[[Weights], str]
"""A line on the model's quality, printed with each checkpoint."""
FAST_FACTOR = 1.5


@dataclass(frozen=True)
class LinearSchedule:
    """A learning rate that rises linearly to `peak` over the warm-up, and then falls linearly to 0."""

    steps: int
    peak: float
    warmup_steps: int

    def learning_rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.peak * (self.steps - step) / max(1, self.steps - self.warmup_steps)


def train(
    parameters: dict[str, Tensor],
    batches: Iterator[LossFunction],
    schedule: LinearSchedule,
    config: Config,
    checkpoint: Path,
    check: Check,
    fast: Collection[str] = (),
) -> dict[str, Tensor]:
    """Minimise the sum of each batch's losses, and return the trained parameters.

    Saves the state to `checkpoint` every `save_steps` steps, and resumes from it. `fast`: names of the parameters with
    1.5 times the learning rate.
    """
    parameters = {name: torch.nn.Parameter(start.clone()) for name, start in parameters.items()}
    groups = _parameter_groups(parameters, fast)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        first = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for name, parameter in parameters.items():
            parameter.data.copy_(state["parameters"][name])
        print(f"  resumed at step {first}")
    started, means = time.perf_counter(), dict[str, float]()
    for step in range(schedule.steps):
        losses_of = next(batches)
        if step < first:
            continue  # earlier batches are drawn too, so that the later ones are the same
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step) * group["factor"]
        losses = losses_of(parameters)
        optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        if not torch.isfinite(norm):
            cure = f"lower the learning rate, and delete {checkpoint}"
            raise SystemExit(f"the gradient norm of step {step + 1} is {norm.item()}: {cure}")
        optimizer.step()
        for name, loss in losses.items():
            means[name] = 0.98 * means.get(name, loss.item()) + 0.02 * loss.item()
        is_last = step + 1 == schedule.steps
        if (step + 1) % 50 == 0 or is_last:
            elapsed = time.perf_counter() - started
            remaining = elapsed / (step + 1 - first) * (schedule.steps - step - 1)
            report = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            print(f"  step {step + 1}/{schedule.steps}: {report}; {remaining / 60:.0f} min left", flush=True)
        if (step + 1) % config.save_steps == 0 or is_last:
            _save(checkpoint, step + 1, parameters, optimizer)
            with torch.no_grad():
                print(f"  {check(parameters)}", flush=True)
    return {name: parameter.detach() for name, parameter in parameters.items()}


def _parameter_groups(parameters: dict[str, Tensor], fast: Collection[str]) -> list[dict[str, Any]]:
    """Weight decay applies to matrices only: it would pull norms and embeddings to zero."""
    others = [parameter for name, parameter in parameters.items() if name not in fast]
    groups = [
        {"params": [parameters[name] for name in fast], "factor": FAST_FACTOR, "weight_decay": 0.0},
        {"params": [parameter for parameter in others if parameter.dim() < 2], "factor": 1.0, "weight_decay": 0.0},
        {"params": [parameter for parameter in others if parameter.dim() > 1], "factor": 1.0},
    ]
    return [group for group in groups if group["params"]]


def _save(path: Path, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    partial = path.with_suffix(".part")
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    torch.save({"step": step, "parameters": values, "optimizer": optimizer.state_dict()}, partial)
    partial.rename(path)
