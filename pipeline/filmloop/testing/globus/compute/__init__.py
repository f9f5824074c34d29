"""Globus Compute, emulated: its web API, and what its services do between the queues of a real RabbitMQ.

`python -m filmloop.testing.globus.hosted --amqp URL` serves it; the unmodified SDK stands on one side, the unmodified
endpoint on the other. Without `--amqp` every route answers 503.
"""

from filmloop.testing.globus.compute.routes import blueprint

__all__ = ["blueprint"]
