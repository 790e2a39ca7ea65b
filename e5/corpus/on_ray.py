"""Run a plan on a Ray cluster: Ray Data schedules, retries and replaces the actors that do the units.

Only numbers of units and receipts pass through Ray; texts and vectors go from file to file. Every node needs this
package, the input, the output folder and the weights. Settings (E5_*) are those of the process that starts the run.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import ray

from e5.corpus import plan as plans
from e5.corpus.errors import CorpusError
from e5.corpus.identity import identify
from e5.corpus.parts import Folder
from e5.corpus.plan import Plan
from e5.corpus.run import Results, pipeline, with_tries
from e5.corpus.unit import Receipt
from e5.embedder import Embedder
from e5.settings import VARIABLES, Settings

BATCH = 4
"""Units that an actor gets at a time, if there are plenty: while it computes one, it reads the next."""
LOCAL = "local"
CONNECT_SECONDS = 5.0


class Actor:
    """Does units with a model that it has loaded once."""

    def __init__(self, url: str, plan_id: str) -> None:
        plan = plans.load(folder := Folder(url))
        if plan is None or plan.id != plan_id:
            raise CorpusError(f"{url} has another plan here than where the run was started: is it a shared folder?")
        settings = Settings.from_environment(model=plan.options.identity.model)
        if (now := identify(settings)) != plan.options.identity:
            raise CorpusError(f"this node has another model than the plan: {now} instead of {plan.options.identity}")
        self.plan, self.folder, self.embedder = plan, folder, Embedder.from_settings(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Units → their receipts, or the reasons why there are none."""
        rows: list[dict[str, Any]] = []
        for unit, result in pipeline(self.plan, self.folder, self.embedder, [int(unit) for unit in batch["unit"]]):
            if isinstance(result, Receipt):
                rows.append({**vars(result), "error": ""})
            else:
                empty = Receipt(unit, 0, 0, 0)
                rows.append({**vars(empty), "error": f"{type(result).__name__}: {result}"})
        return {name: [row[name] for row in rows] for name in rows[0]}


def run_on_ray(
    plan: Plan,
    folder: Folder,
    units: Sequence[int],
    report: Callable[[Receipt], None],
    address: str,
    actors: int | None = None,
) -> dict[int, str]:
    """Do these units, and return the last error of each that failed three times.

    `actors`: by default one for each GPU of the cluster, or one for each node without GPUs. Raises CorpusError.
    """
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    runtime = {"env_vars": variables}
    options: dict[str, Any] = {} if address == LOCAL else {"address": address}
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # ray.init() waits for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(**options, runtime_env=runtime, log_to_driver=False, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(f"Ray cannot be reached at {address}: {error}") from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources, count = _actors(actors)

        def attempt(queue: Sequence[int]) -> Results:
            batch = BATCH if len(queue) >= 4 * BATCH * count else 1
            dataset = ray.data.from_items([{"unit": unit} for unit in queue], override_num_blocks=len(queue) // batch)
            receipts = dataset.map_batches(
                Actor,
                fn_constructor_kwargs={"url": folder.url, "plan_id": plan.id},
                batch_size=batch,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count),
                **resources,
            )
            for row in receipts.iter_rows():
                error = row.pop("error")
                receipt = Receipt(**row)
                yield receipt.unit, RuntimeError(error) if error else receipt

        try:
            return with_tries(units, attempt, report)
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise CorpusError(f"Ray gave up: {cause}") from None
    finally:
        ray.shutdown()


def _actors(count: int | None) -> tuple[dict[str, float], int]:
    """Resources of an actor, and how many there are at most."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        return {"num_gpus": 1}, count or gpus
    with_cores = [node["CPU"] for node in nodes if node.get("CPU")]
    per_node = -(-(count or len(with_cores)) // len(with_cores))
    return {"num_cpus": max(1, min(with_cores) // per_node)}, count or len(with_cores)
