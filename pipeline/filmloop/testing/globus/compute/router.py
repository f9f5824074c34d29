"""What the service does between its queues: heartbeats are noted, results are kept and passed on to their client."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pika
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result
from pika.adapters.blocking_connection import BlockingChannel

from filmloop.testing.globus.compute.book import Book
from filmloop.testing.globus.compute.queues import HEARTBEATS, RESULTS, Queues, group_queue, send
from filmloop.testing.globus.hub import Hub

_log = logging.getLogger(__name__)
_RECONNECT_S = 0.5


class Router(threading.Thread):
    """Reads what endpoints publish, for as long as the process lives."""

    def __init__(self, hub: Hub, book: Book, queues: Queues) -> None:
        super().__init__(daemon=True, name="router")
        self._hub, self._book, self._queues = hub, book, queues

    def run(self) -> None:
        """Consume; after any failure connect anew. What was not acknowledged comes again."""
        while True:
            try:
                self._consume()
            except pika.exceptions.AMQPError as exc:
                _log.warning("no broker: %r", exc)
            except Exception:
                _log.exception("the router starts anew")
            time.sleep(_RECONNECT_S)

    def _consume(self) -> None:
        with self._queues.channel() as channel:
            self._queues.declare_shared(channel)
            channel.basic_qos(prefetch_count=50)
            channel.basic_consume(HEARTBEATS, self._on_heartbeat)
            channel.basic_consume(RESULTS, self._on_result)
            channel.start_consuming()

    def _on_heartbeat(self, channel: BlockingChannel, deliver: Any, _properties: Any, body: bytes) -> None:
        report = messagepack.unpack(body)
        if isinstance(report, EPStatusReport):
            self._book.beat(str(report.endpoint_id), report.global_state)
        channel.basic_ack(deliver.delivery_tag)

    def _on_result(self, channel: BlockingChannel, deliver: Any, _properties: Any, body: bytes) -> None:
        result = messagepack.unpack(body)
        if isinstance(result, Result) and self._hub.fault("lose_result") is None:
            queue = self._keep(result)
            copies = 1 if self._hub.fault("double_result") is None else 2
            for _ in range(copies if queue else 0):
                send(channel, queue, body)
        channel.basic_ack(deliver.delivery_tag)

    def _keep(self, result: Result) -> str:
        """Write the outcome down; returns the queue that its client reads, '' if there is none."""
        with self._book.lock:
            task = self._book.tasks.get(result.task_id)
            if task is None:
                return ""
            task.status = "failed" if result.is_error else "success"
            task.result, task.details, task.completed_at = result.data, result.details, time.time()
            self._book.tasks.keep(task)
            group = self._book.groups.get(task.group)
            return group_queue(group.id) if group and group.queue else ""
