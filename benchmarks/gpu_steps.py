"""The steps of scripts/measure_gpu.py, in order of importance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e5.catalog import EMBEDDED, FLAGSHIP
from e5_cog.repository import ROOT

RIVAL = "sentence_transformers"
ENCODER = "multilingual-e5-large"


@dataclass(frozen=True)
class Step:
    """One process.

    `limit`: seconds; `command`: arguments for Python; `needs`: the step that draws its weights; `packages`: what it
    imports beyond torch and transformers.
    """

    name: str
    log: str
    limit: float
    command: tuple[str, ...]
    needs: str = ""
    packages: tuple[str, ...] = ()


def steps(part: int | None, weights: Path, data: Path | None, dry: bool) -> list[Step]:
    """The steps of one part, or of all three if `part` is None. `weights`: folder for the random weights."""
    model = EMBEDDED if dry else FLAGSHIP
    merged, adapted = str(weights / "merged"), str(weights / "adapted")

    def benchmark(sections: str, *options: str) -> tuple[str, ...]:
        quick = ("--quick", "--repeats", "1", "--texts", "6") if dry else ()
        return ("scripts/benchmark.py", "--partial", "--only", sections, "--model", model, *options, *quick)

    def sized(*options: str) -> tuple[str, ...]:
        return () if dry else options

    def draw(*options: str) -> tuple[str, ...]:
        layers = ("--layers", "1") if dry else ()
        return ("scripts/random_checkpoint.py", "--model", model, *layers, "--to", *options)

    dtypes = ("--dtypes", "float32,bfloat16" if dry else "float16")
    rival_batches = ("--rival-batches", "2,4") if dry else ()
    throughput_options = (*dtypes, "--weights", merged, *rival_batches, *sized("--texts", "768", "--repeats", "3"))
    latency_options = (*dtypes, "--weights", merged, *sized("--repeats", "20"))
    ablation_options = ("--weights", merged, *sized("--texts", "384", "--repeats", "3"))
    merge_options = ("--random-weights", "--layers", "1" if dry else "2", *(("--data", str(data)) if data else ()))
    encoder_size = ("--model", "e5-small", "--layers", "1") if dry else ("--model", ENCODER, "--texts", "384")
    once = ("--repeats", "1", "--weights", adapted)

    draw_merged = Step("draw", "setup.log", 110, draw(merged, "--merged"))
    draw_base = Step("draw base", "setup.log", 110, draw(adapted))
    parts = {
        1: [
            draw_merged,
            Step("tests", "tests.log", 120, ("-m", "pytest", *_gpu_tests()), "", ("pytest", "pytest_timeout")),
            Step("roofline", "speed.log", 80, benchmark("roofline", "--weights", merged), "draw"),
            Step("throughput", "speed.log", 230, benchmark("throughput", *throughput_options), "draw", (RIVAL,)),
            Step("latency", "speed.log", 120, benchmark("latency", *latency_options), "draw", (RIVAL,)),
        ],
        2: [
            draw_merged,
            Step("ablations", "ablations.log", 240, benchmark("ablations", *ablation_options), "draw"),
            Step("parity", "parity.log", 280, benchmark("parity", "--weights", merged), "draw", (RIVAL,)),
            Step("encoder", "ablations.log", 90, benchmark("ablations,fused_ops", "--random-weights", *encoder_size)),
        ],
        3: [
            draw_base,
            Step("serve", "serve.log", 180, benchmark("serve", *once), "draw base", ("cog", "aiohttp")),
            Step("profile", "ablations.log", 130, benchmark("profile,fused_ops", "--weights", adapted), "draw base"),
            Step("setup", "setup.log", 90, benchmark("setup", *once), "draw base"),
            Step("merge", "parity.log", 130, benchmark("parity", *merge_options), "", (RIVAL, "peft")),
            Step("loading", "setup.log", 330, benchmark("loading", *once), "draw base"),
        ],
    }
    chosen: Sequence[Step] = parts[part] if part is not None else [step for steps in parts.values() for step in steps]
    return list({step.name: step for step in chosen}.values())


def _gpu_tests() -> list[str]:
    """pytest options for the tests marked `gpu` or `kernels`. Collects only files with those markers, because other
    files import packages that a bare GPU machine lacks."""
    texts = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    marked = [path for path, text in texts.items() if "mark.gpu" in text or "mark.kernels" in text]
    files = [path.relative_to(ROOT).as_posix() for path in marked]
    return ["-v", "-p", "no:cacheprovider", "-m", "gpu or kernels", *files]
