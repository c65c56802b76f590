"""Asking for a run as any producer would."""

from aio_pika import DeliveryMode, Message

from schemas.messages import EXCHANGE, REQUEST_ROUTING_KEY, REQUEST_TYPE, RunRequested
from worker.broker import connected, translated
from worker.intake.topology import declare


async def publish_request(amqp_url: str, request: RunRequested) -> None:
    """Publish one request: persistent, mandatory, confirmed.

    Raises:
        BrokerAway: nobody answers, or the broker did not confirm: the request may or may not have arrived. Repeating
            it with the same run id is harmless.
        TopologyDiffers: an object exists with other arguments.
    """
    async with connected(amqp_url, "request-run") as connection:
        await declare(connection)
        async with translated():
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(EXCHANGE)
            message = Message(
                request.model_dump_json().encode(),
                content_type="application/json",
                type=REQUEST_TYPE,
                message_id=str(request.run_id),
                delivery_mode=DeliveryMode.PERSISTENT,
            )
            await exchange.publish(message, REQUEST_ROUTING_KEY, mandatory=True, timeout=10)
