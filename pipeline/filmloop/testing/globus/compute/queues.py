"""The queues of the service in a real RabbitMQ. All are durable, and so are the messages: a broker that restarts loses none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

RESULTS, HEARTBEATS = "results", "heartbeats"
PREFIX = "task-group."
"""[choice] What a client puts before its task group's id to get the name of its queue."""
_TTL_MS = 14 * 24 * 3600 * 1000


class Queues:
    """A connection for each use: nothing here has to notice that the broker went away and came back."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """A channel for the block.

        Raises:
            pika.exceptions.AMQPError: there is no broker.
        """
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel

    def declare_shared(self, channel: BlockingChannel) -> None:
        """What all endpoints publish to."""
        for name in (RESULTS, HEARTBEATS):
            channel.exchange_declare(name, "direct", durable=True)
            channel.queue_declare(name, durable=True)
            channel.queue_bind(name, name, routing_key=name)

    def declare(self, *names: str) -> None:
        """Queues that are to be there."""
        with self.channel() as channel:
            self.declare_shared(channel)
            for name in names:
                channel.queue_declare(name, durable=True)

    def reading(self, queue: str) -> dict[str, Any]:
        """What an endpoint needs to read a queue."""
        return {"connection_url": self.url, "queue": queue}

    def writing(self, name: str) -> dict[str, Any]:
        """What an endpoint needs to publish to a shared queue."""
        publish = {
            "exchange": name,
            "routing_key": name,
            "mandatory": True,
            "properties": {"delivery_mode": 2, "content_type": "application/octet-stream"},
        }
        return {"connection_url": self.url, "queue": name, "exchange": name, "queue_publish_kwargs": publish}


def group_queue(group: str) -> str:
    """Where the results of a task group wait for its client."""
    return PREFIX + group


def command_queue(endpoint: str) -> str:
    """Where a core endpoint waits for orders."""
    return f"{endpoint}.commands"


def task_queue(endpoint: str) -> str:
    """Where a user endpoint waits for tasks."""
    return f"{endpoint}.tasks"


def send(channel: BlockingChannel, queue: str, body: bytes, **properties: Any) -> None:
    """Publish straight to a queue; comes back when the broker has it on disk."""
    kept = pika.BasicProperties(delivery_mode=2, timestamp=round(time.time()), **properties)
    channel.basic_publish("", queue, body, kept, mandatory=True)


def send_command(channel: BlockingChannel, queue: str, command: dict[str, Any]) -> None:
    """An order to a core endpoint."""
    send(channel, queue, json.dumps(command).encode(), content_type="application/json")
