"""Procrastinate: Postgres is the queue."""

from procrastinate import App, PsycopgConnector

from peers.ledger import DATABASE_URL, SLOTS, AsyncLedger

app = App(connector=PsycopgConnector(conninfo=DATABASE_URL, max_size=SLOTS))
ledger = AsyncLedger()


@app.task(name="train")
async def train(run_id: str, requested_at: str) -> None:
    if ledger._pool is None:
        await ledger.open()
    await ledger.train(run_id, requested_at)


async def sender():
    await app.open_async()

    async def send(run_id: str, requested_at: str) -> None:
        await train.defer_async(run_id=run_id, requested_at=requested_at)

    yield send
