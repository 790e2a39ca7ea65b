"""The two stages of training with gradients, base and adapter, in one loop that can be interrupted and taken up again.

Both have one aim: the vector that a teacher gives to each text, and the teacher's similarities within each batch. The
base sees plain texts, and its teacher is another model. The adapter sees most of them behind an instruction, and its
teacher is the base, which sees them without: what it is to learn is to leave the instruction out.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from e5.prompts import query_prompt
from training import task_instructions
from training.config import Config
from training.dataset import BOS, EOS, Texts, batches
from training.network import PROJECTIONS, Packed, Weights, forward, low_precision, merged, pack

Losses = dict[str, Tensor]
Step = Callable[[dict[str, Tensor]], Losses]
Check = Callable[[Weights], str]
"""What is to be said of the parameters from time to time."""


@dataclass(frozen=True)
class Schedule:
    """How many steps, the highest learning rate, the steps in which it rises to that; it then falls to nothing."""

    steps: int
    rate: float
    warm_up: int

    def at(self, step: int) -> float:
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        return self.rate * (self.steps - step) / max(1, self.steps - self.warm_up)


def run(
    parameters: dict[str, Tensor],
    losses: Iterator[Step],
    schedule: Schedule,
    config: Config,
    saved: Path,
    check: Check,
    faster: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Minimise the sum of what each next step says; → the trained parameters.

    `saved`: where the state is kept every so many steps, and taken up from. `faster`: parameters at 1.5 × the rate.
    """
    parameters = {name: torch.nn.Parameter(one.clone()) for name, one in parameters.items()}
    groups = [
        # Decay for matrices: norms and embeddings are not pulled to zero.
        {"params": [one for name, one in parameters.items() if name in faster], "factor": 1.5, "weight_decay": 0.0},
        {
            "params": [one for name, one in parameters.items() if name not in faster and one.dim() < 2],
            "factor": 1.0,
            "weight_decay": 0.0,
        },
        {"params": [one for name, one in parameters.items() if name not in faster and one.dim() > 1], "factor": 1.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), weight_decay=config.decay, fused=True)
    first = 0
    if saved.exists():
        state = torch.load(saved, map_location="cpu", weights_only=True)
        first = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for name, one in parameters.items():
            one.data.copy_(state["parameters"][name])
        print(f"  taken up at step {first}")
    started, means = time.perf_counter(), dict[str, float]()
    for step in range(schedule.steps):
        loss_of = next(losses)
        if step < first:
            continue  # the batches before are drawn and left, so that those after are the same
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step) * group["factor"]
        found = loss_of(parameters)
        optimizer.zero_grad()
        torch.autograd.backward(list(found.values()))
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
        if not torch.isfinite(norm):
            raise SystemExit(f"the gradient of step {step + 1} is {norm.item()}: lower the rate, and delete {saved}")
        optimizer.step()
        for name, value in found.items():
            means[name] = 0.98 * means.get(name, value.item()) + 0.02 * value.item()
        if (step + 1) % 50 == 0 or step + 1 == schedule.steps:
            spent = time.perf_counter() - started
            left = spent / (step + 1 - first) * (schedule.steps - step - 1)
            said = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"  step {step + 1}/{schedule.steps}: {said}; {left / 60:.0f} min left", flush=True)
        if (step + 1) % config.save_every == 0 or step + 1 == schedule.steps:
            _save(saved, step + 1, parameters, optimizer)
            with torch.no_grad():
                print(f"  {check(parameters)}", flush=True)
    return {name: one.detach() for name, one in parameters.items()}


def _save(path: Path, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    partial = path.with_suffix(".part")
    plain = {name: one.detach() for name, one in parameters.items()}
    torch.save({"step": step, "parameters": plain, "optimizer": optimizer.state_dict()}, partial)
    partial.rename(path)


def distance(student: Tensor, teacher: Tensor, config: Config) -> Losses:
    """How far the student's vectors [N, D] are from the teacher's [N, d], d ≤ D: each by itself, and by its neighbours.

    The second is the divergence of the softmax over a text's similarities with the others in the batch.
    """
    student = functional.normalize(student)
    cosine = (student[:, : teacher.shape[1]] * teacher).sum(1)
    alone = torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)
    theirs = (teacher @ teacher.T / config.temperature).masked_fill(alone, -math.inf).softmax(1)
    ours = (student @ student.T / config.temperature).masked_fill(alone, -math.inf).log_softmax(1)
    divergence = (theirs * (theirs.clamp(min=1e-9).log() - ours.masked_fill(alone, 0))).sum(1).mean()
    return {"distance": (1 - cosine).mean(), "relation": config.relation_weight * divergence}


def train_base(
    config: Config, texts: Texts, start: Weights, saved: Path, device: torch.device, check: Check
) -> dict[str, Tensor]:
    def steps() -> Iterator[Step]:
        for rows in batches(texts, config, config.seed + 2):
            batch = pack([[BOS, *texts.tokens(row), EOS] for row in rows.tolist()])
            targets = texts.targets(rows[batch.order]).to(device)

            def losses(weights: dict[str, Tensor], batch: Packed = batch, targets: Tensor = targets) -> Losses:
                vectors = forward(low_precision(weights, torch.bfloat16), config.shape, batch)
                return distance(vectors, targets, config)

            yield losses

    parameters = {name: one.to(device) for name, one in start.items()}
    schedule = Schedule(config.base_steps, config.base_rate, config.base_warm_up)
    return run(parameters, steps(), schedule, config, saved, check, faster=("embed_tokens.weight",))


def fresh_adapter(config: Config) -> dict[str, Tensor]:
    """As peft begins: A at random (He et al. 2015, a = √5), B zero."""
    generator = torch.Generator().manual_seed(config.seed + 3)
    adapter = {}
    for name, (outputs, inputs) in config.shape.matrices().items():
        assert name.rpartition(".")[2] in PROJECTIONS
        bound = 1 / math.sqrt(inputs)
        adapter[f"{name}.lora_A.weight"] = (torch.rand(config.rank, inputs, generator=generator) * 2 - 1) * bound
        adapter[f"{name}.lora_B.weight"] = torch.zeros(outputs, config.rank)
    return adapter


class AdapterData:
    """Draws what one step of the adapter's training sees."""

    def __init__(self, config: Config, strings: Sequence[str], texts: Texts, tokenizer: Path) -> None:
        self.config, self.strings, self.texts = config, strings, texts
        self._tokenizer = Tokenizer.from_file(str(tokenizer))

    def steps(self, base: Weights) -> Iterator[Step]:
        config = self.config
        generator = random.Random(config.seed + 4)
        frozen = low_precision(base, torch.bfloat16)
        for rows in batches(self.texts, config, config.seed + 4, extra=config.more_tokens):
            plain = [self.lengthened(self.strings[row], generator) for row in rows.tolist()]
            batch = self.packed([self.prompted(text, generator) for text in plain])
            bare = self.packed([plain[row] for row in batch.order.tolist()])

            def losses(adapter: dict[str, Tensor], batch: Packed = batch, bare: Packed = bare) -> Losses:
                with torch.no_grad():
                    targets = functional.normalize(forward(frozen, config.shape, bare))[bare.order.argsort()]
                weights = low_precision(merged(base, adapter, config.alpha / config.rank), torch.bfloat16)
                return distance(forward(weights, config.shape, batch), targets, config)

            yield losses

    def lengthened(self, text: str, generator: random.Random) -> str:
        """A text, or now and then several, one behind the other.

        An adapter that saw short texts only takes a long one's beginning for an instruction: without this the mean
        cosine with the base's vector was .9989 for plain texts under 15 tokens and .9875 for those of 50 to 80.
        """
        if generator.random() > self.config.lengthened:
            return text
        return " ".join((text, *generator.choices(self.strings, k=generator.randint(1, self.config.lengthened_by))))

    def prompted(self, text: str, generator: random.Random) -> str:
        """A text as a query, with some instruction, or as a document."""
        if generator.random() > self.config.instructed:
            return text
        return query_prompt("instruct", task_instructions.draw(generator, self.strings), text)

    def packed(self, prompts: Sequence[str]) -> Packed:
        found = self._tokenizer.encode_batch_fast(list(prompts), add_special_tokens=False)
        return pack([[BOS, *one.ids[: self.config.most_tokens], EOS] for one in found])


def train_adapter(
    config: Config, data: AdapterData, base: Weights, saved: Path, device: torch.device, check: Check
) -> dict[str, Tensor]:
    frozen = {name: one.to(device) for name, one in base.items()}
    parameters = {name: one.to(device) for name, one in fresh_adapter(config).items()}
    schedule = Schedule(config.adapter_steps, config.adapter_rate, config.adapter_warm_up)

    def check_merged(adapter: Weights) -> str:
        return check(merged(frozen, adapter, config.alpha / config.rank))

    return run(parameters, data.steps(frozen), schedule, config, saved, check_merged)
