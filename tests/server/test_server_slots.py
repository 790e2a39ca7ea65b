"""64 clients that wait for their answers never find Cog's server at capacity."""

import asyncio
from collections import Counter

from e5_cog.server import running
from loadtesting.cog_client import Client
from tests.rule_predictor import RULE

CLIENTS, REQUESTS = 64, 20_000


def test_waiting_clients_get_no_409() -> None:
    async def scenario(url: str) -> Counter[int]:
        statuses: Counter[int] = Counter()
        numbers = iter(range(REQUESTS))
        async with Client.connect(url) as client:

            async def work() -> None:
                for number in numbers:
                    reply = await client.predict({"document": f"text {number}"}, retry=False)
                    statuses[reply.http_status] += 1

            await asyncio.gather(*(work() for _ in range(CLIENTS)))
        return statuses

    # A model that takes no time: slots are taken most often.
    with running(RULE) as server:
        assert asyncio.run(scenario(server.url)) == {200: REQUESTS}
