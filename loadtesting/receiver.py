"""A web server of the load test that receives webhooks."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from loadtesting.cog_client import Json


@asynccontextmanager
async def receiver(receive: Callable[[Json], None]) -> AsyncIterator[str]:
    """Listen on 127.0.0.1 and yield the address for webhooks. `receive` gets each prediction that arrives."""

    async def handle(request: web.Request) -> web.Response:
        receive(await request.json())
        return web.Response()

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/hook", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()
