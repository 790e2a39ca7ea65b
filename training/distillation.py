"""Train the base and the adapter by distillation.

A student learns the teacher's vector of each text, and the teacher's similarities within each batch. The base sees
plain texts, and its teacher is another model. The adapter sees most texts with an instruction; its teacher is the base,
which sees them without. So the adapter learns to ignore the instruction.
"""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from e5.prompts import query_prompt
from training import task_instructions
from training.config import Config
from training.dataset import BOS, EOS, TrainingSet, batches
from training.network import TrainingBatch, Weights, cast_projections, forward, merge_lora, pack
from training.trainer import Check, LinearSchedule, Losses, LossFunction, train


def distillation_losses(student: Tensor, teacher: Tensor, config: Config) -> Losses:
    """How far the student's vectors [N, D] are from the teacher's unit vectors [N, d], d ≤ D.

    `cosine`: 1 − the mean cosine with the teacher's vector. `similarities`: Kullback-Leibler divergence between the
    softmaxes over each text's similarities with the rest of the batch, weighted.
    """
    student = functional.normalize(student)
    cosine = (student[:, : teacher.shape[1]] * teacher).sum(1)
    self_pairs = torch.eye(len(teacher), dtype=torch.bool, device=teacher.device)
    target = (teacher @ teacher.T / config.temperature).masked_fill(self_pairs, -math.inf).softmax(1)
    log_probabilities = (student @ student.T / config.temperature).masked_fill(self_pairs, -math.inf).log_softmax(1)
    log_ratio = target.clamp(min=1e-9).log() - log_probabilities.masked_fill(self_pairs, 0)
    divergence = (target * log_ratio).sum(1).mean()
    return {"cosine": (1 - cosine).mean(), "similarities": config.similarity_loss_weight * divergence}


def train_base(
    config: Config, texts: TrainingSet, start: Weights, checkpoint: Path, device: torch.device, check: Check
) -> dict[str, Tensor]:
    """Train all of the base's weights from `start`."""

    def loss_functions() -> Iterator[LossFunction]:
        for rows in batches(texts, config, config.seed + 2):
            batch = pack([[BOS, *texts.tokens(row), EOS] for row in rows.tolist()])
            targets = texts.targets(rows[batch.order]).to(device)

            def losses(weights: dict[str, Tensor], batch: TrainingBatch = batch, targets: Tensor = targets) -> Losses:
                vectors = forward(cast_projections(weights, torch.bfloat16), config.model, batch)
                return distillation_losses(vectors, targets, config)

            yield losses

    parameters = {name: weight.to(device) for name, weight in start.items()}
    schedule = LinearSchedule(config.base_steps, config.base_learning_rate, config.base_warmup_steps)
    return train(parameters, loss_functions(), schedule, config, checkpoint, check, fast=("embed_tokens.weight",))


def initial_adapter(config: Config) -> dict[str, Tensor]:
    """peft's initialization: A uniform (He et al. 2015, a = √5), B zero."""
    generator = torch.Generator().manual_seed(config.seed + 3)
    adapter = {}
    for name, (outputs, inputs) in config.model.projections().items():
        bound = 1 / math.sqrt(inputs)
        uniform = torch.rand(config.lora_rank, inputs, generator=generator) * 2 - 1
        adapter[f"{name}.lora_A.weight"] = uniform * bound
        adapter[f"{name}.lora_B.weight"] = torch.zeros(outputs, config.lora_rank)
    return adapter


class AdapterData:
    """The adapter's batches: texts with random instructions, and the base's vectors of the same texts without."""

    def __init__(self, config: Config, strings: Sequence[str], texts: TrainingSet, tokenizer_file: Path) -> None:
        self.config, self.strings, self.texts = config, strings, texts
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))

    def loss_functions(self, base: Weights) -> Iterator[LossFunction]:
        config = self.config
        generator = random.Random(config.seed + 4)
        teacher_weights = cast_projections(base, torch.bfloat16)
        for rows in batches(self.texts, config, config.seed + 4, extra=config.extra_tokens):
            texts = [self._concatenate(self.strings[row], generator) for row in rows.tolist()]
            prompted = self._pack([self._prompt(text, generator) for text in texts])
            plain = self._pack([texts[row] for row in prompted.order.tolist()])

            def losses(
                adapter: dict[str, Tensor], prompted: TrainingBatch = prompted, plain: TrainingBatch = plain
            ) -> Losses:
                with torch.no_grad():
                    vectors = forward(teacher_weights, config.model, plain)
                    targets = functional.normalize(vectors)[plain.order.argsort()]
                merged = merge_lora(base, adapter, config.lora_alpha / config.lora_rank)
                vectors = forward(cast_projections(merged, torch.bfloat16), config.model, prompted)
                return distillation_losses(vectors, targets, config)

            yield losses

    def _concatenate(self, text: str, generator: random.Random) -> str:
        """The text, sometimes followed by up to `max_concatenated` others.

        An adapter trained on short texts only takes the start of a long text for an instruction: the mean cosine with
        the base's vector was .9989 for plain texts under 15 tokens and .9875 for those of 50 to 80.
        """
        if generator.random() > self.config.concatenation_probability:
            return text
        count = generator.randint(1, self.config.max_concatenated)
        return " ".join((text, *generator.choices(self.strings, k=count)))

    def _prompt(self, text: str, generator: random.Random) -> str:
        """The text as a query with a random instruction, or as a document."""
        if generator.random() > self.config.instruction_probability:
            return text
        return query_prompt("instruct", task_instructions.draw(generator, self.strings), text)

    def _pack(self, prompts: Sequence[str]) -> TrainingBatch:
        encodings = self._tokenizer.encode_batch_fast(list(prompts), add_special_tokens=False)
        return pack([[BOS, *encoding.ids[: self.config.max_tokens], EOS] for encoding in encodings])


def train_adapter(
    config: Config, data: AdapterData, base: Weights, checkpoint: Path, device: torch.device, check: Check
) -> dict[str, Tensor]:
    """Train a LoRA adapter on the frozen base."""
    frozen = {name: weight.to(device) for name, weight in base.items()}
    parameters = {name: start.to(device) for name, start in initial_adapter(config).items()}
    schedule = LinearSchedule(config.adapter_steps, config.adapter_learning_rate, config.adapter_warmup_steps)

    def check_merged(adapter: Weights) -> str:
        return check(merge_lora(frozen, adapter, config.lora_alpha / config.lora_rank))

    return train(parameters, data.loss_functions(frozen), schedule, config, checkpoint, check_merged)
