"""The two stages of training with gradients, base and adapter, in one loop that can be interrupted and taken up again.

Both have one aim: the teacher's vector for each text, and the teacher's similarities within each batch. The base sees
plain texts. The adapter, with the base frozen, sees most of them behind an instruction; and it learns from people's
judgements in the train splits of STS-B and TrecQA what the teacher does not know.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from e5.prompts import query_prompt
from scripts import tiny_instructions
from scripts.quality import Pair, read_pairs
from scripts.tiny_config import Config
from scripts.tiny_data import BOS, EOS, Texts, batches
from scripts.tiny_network import PROJECTIONS, Packed, Weights, forward, low_precision, merged, pack
from scripts.tiny_text import QA_TRAIN, STS_TRAIN, Answered, Heldout, allowed, read_qa

ANSWER_TEMPERATURE = 0.05
RANKING_SCALE = 20.0
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


@dataclass(frozen=True)
class Judged:
    """What people said in the train splits, without what is held out."""

    sts: Sequence[Pair]
    qa: Sequence[Answered]

    @classmethod
    def read(cls, data: Path) -> Self:
        """Questions are those with a right and a wrong answer. Raises SystemExit where nothing is left."""
        heldout = Heldout.read(data)
        pairs = [one for one in read_pairs(data / STS_TRAIN) if not heldout.any((one.first, one.second))]
        qa = [one for one in allowed(read_qa(data / QA_TRAIN), heldout) if one.right and one.wrong]
        if not pairs or not qa:
            raise SystemExit(
                f"{data} leaves {len(pairs)} judged pairs and {len(qa)} questions: are these the train splits?"
            )
        return cls(pairs, qa)


class AdapterData:
    """Draws what one step of the adapter's training sees."""

    def __init__(self, config: Config, strings: Sequence[str], texts: Texts, judged: Judged, tokenizer: Path) -> None:
        self.config, self.strings, self.texts, self.judged = config, strings, texts, judged
        self._tokenizer = Tokenizer.from_file(str(tokenizer))

    def steps(self, base: Weights, device: torch.device) -> Iterator[Step]:
        config = self.config
        generator = random.Random(config.seed + 4)
        for rows in batches(self.texts, config, config.seed + 4, extra=config.instruction_tokens):
            strings = [self.strings[row] for row in rows.tolist()]
            general = self.packed([self.prompted(one, generator) for one in strings])
            targets = self.texts.targets(rows[general.order]).to(device)
            sts = generator.sample(self.judged.sts, min(len(self.judged.sts), config.judged_pairs))
            pairs = self.packed([self.prompted(one, generator) for pair in sts for one in (pair.first, pair.second)])
            gold = torch.tensor([pair.similarity for pair in sts], device=device)
            asked, right = self.questions(generator)
            question = self.packed(asked)

            def losses(
                adapter: dict[str, Tensor],
                general: Packed = general,
                targets: Tensor = targets,
                pairs: Packed = pairs,
                gold: Tensor = gold,
                question: Packed = question,
                right: Tensor = right,
            ) -> Losses:
                weights = low_precision(merged(base, adapter, config.alpha / config.rank), torch.bfloat16)
                found = distance(forward(weights, config.shape, general), targets, config)
                found["judged"] = config.judged_weight * ranking(self._ordered(weights, pairs), gold)
                found["answers"] = config.answers_weight * answering(self._ordered(weights, question), right)
                return found

            yield losses

    def _ordered(self, weights: Weights, batch: Packed) -> Tensor:
        """Vectors of length 1, in the order in which the texts were given."""
        vectors = functional.normalize(forward(weights, self.config.shape, batch))
        return vectors[batch.order.argsort()]

    def prompted(self, text: str, generator: random.Random) -> str:
        """A text as a query, with some instruction, or as a document."""
        if generator.random() > self.config.instructed:
            return text
        return query_prompt("instruct", tiny_instructions.draw(generator, self.strings), text)

    def questions(self, generator: random.Random) -> tuple[list[str], Tensor]:
        """A question and sentences; bool for the sentences: whether they answer it. One at least does."""
        one = generator.choice(self.judged.qa)
        others = [(text, True) for text in one.right] + [(text, False) for text in one.wrong]
        others = generator.sample(others, min(len(others), self.config.judged_answers))
        if not any(right for _, right in others):
            others[0] = (generator.choice(one.right), True)
        task = tiny_instructions.draw(generator, self.strings)
        asked = query_prompt("instruct", task, one.question)
        return [asked, *(text for text, _ in others)], torch.tensor([right for _, right in others])

    def packed(self, prompts: Sequence[str]) -> Packed:
        found = self._tokenizer.encode_batch_fast(list(prompts), add_special_tokens=False)
        return pack([[BOS, *one.ids[: self.config.most_tokens], EOS] for one in found])


def ranking(vectors: Tensor, gold: Tensor) -> Tensor:
    """CoSENT (Su 2022): pairs that people find more similar should have the higher cosine.

    vectors [2P, D] of length 1, the two of a pair side by side; gold [P].
    """
    cosine = RANKING_SCALE * (vectors[::2] * vectors[1::2]).sum(1)
    wrong = (cosine.unsqueeze(0) - cosine.unsqueeze(1))[gold.unsqueeze(1) > gold.unsqueeze(0)]
    return torch.cat((torch.zeros(1, device=gold.device), wrong)).logsumexp(0)


def answering(vectors: Tensor, right: Tensor) -> Tensor:
    """The first vector is a question's: the share of the softmax that falls on right answers, as a loss."""
    likely = (vectors[1:] @ vectors[0] / ANSWER_TEMPERATURE).log_softmax(0)
    return -likely[right.to(likely.device)].logsumexp(0)


def train_adapter(
    config: Config, data: AdapterData, base: Weights, saved: Path, device: torch.device, check: Check
) -> dict[str, Tensor]:
    frozen = {name: one.to(device) for name, one in base.items()}
    parameters = {name: one.to(device) for name, one in fresh_adapter(config).items()}
    schedule = Schedule(config.adapter_steps, config.adapter_rate, config.adapter_warm_up)

    def check_merged(adapter: Weights) -> str:
        return check(merged(frozen, adapter, config.alpha / config.rank))

    return run(parameters, data.steps(frozen, device), schedule, config, saved, check_merged)
