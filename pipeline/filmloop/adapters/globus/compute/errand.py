"""What is sent beside the polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Errand:
    """A short function on its way. A thread sends it: the service may answer after half a minute, and a poll does not wait.

    Attributes:
        what: `look` or `cancel`.
        sent_s: When it was sent, and when it was taken (`taken_s`): epoch seconds.
        task_id: The service's; '' until it was taken.
        error: Why it was not.
    """

    def __init__(self, what: str) -> None:
        self.what, self.task_id, self.error = what, "", None
        self.sent_s = self.taken_s = time.time()

    error: Exception | None

    def start(self, send: Callable[[], str]) -> None:
        """Have `send` called, which returns the task's id."""

        def work() -> None:
            try:
                task_id = send()
            except Exception as exc:
                self.error = exc
                return
            self.taken_s = time.time()
            self.task_id = task_id

        threading.Thread(target=work, name="filmloop-errand", daemon=True).start()
