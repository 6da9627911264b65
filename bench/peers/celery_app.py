"""Celery on Redis or RabbitMQ: acks_late, requests with keep-alive, tenacity, pybreaker."""

from __future__ import annotations

import os
import sys

import pybreaker
import requests
import tenacity
from bench.support.payload import BODY, DATA, TITLE, TOKEN, fcm_message
from celery import Celery

REDIS = os.environ["BENCH_REDIS"]
BROKER = os.environ.get("BENCH_BROKER", REDIS)
SINK = os.environ["BENCH_SINK"]

# The result backend is where Celery records what became of a task; ours records what became of each notification.
app = Celery("bench", broker=BROKER, backend=REDIS)
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)
if BROKER.startswith("amqp"):
    # As ours uses it: on a majority of the nodes, and a task counts as handed over when the broker has confirmed it.
    app.conf.update(task_default_queue_type="quorum", broker_transport_options={"confirm_publish": True})
breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)
session = requests.Session()


@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential_jitter(initial=1, max=30))
@breaker
def _post(message: object) -> None:
    session.post(SINK, json=message, timeout=10).raise_for_status()


@app.task(name="deliver")  # type: ignore[untyped-decorator]
def deliver(token: str, title: str, body: str, data: dict[str, str]) -> None:
    """Deliver one message; the backend records that it was."""
    _post(fcm_message(token, title, body, data))


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        deliver.delay(TOKEN, TITLE, BODY, DATA)
