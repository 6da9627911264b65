"""taskiq on Redis streams: aiohttp with keep-alive, tenacity, aiobreaker."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

import aiobreaker
import aiohttp
import tenacity
from bench.support.payload import BODY, DATA, TITLE, TOKEN, fcm_message
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

REDIS = os.environ["BENCH_REDIS"]
SINK = os.environ["BENCH_SINK"]

broker = RedisStreamBroker(url=REDIS).with_result_backend(RedisAsyncResultBackend(redis_url=REDIS))
breaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=60))
sessions: list[aiohttp.ClientSession] = []


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def _open(state: TaskiqState) -> None:
    sessions.append(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))


@tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_exponential_jitter(initial=1, max=30))
@breaker
async def _post(message: object) -> None:
    async with sessions[0].post(SINK, json=message) as answer:
        answer.raise_for_status()


@broker.task(task_name="deliver")
async def deliver(token: str, title: str, body: str, data: dict[str, str]) -> None:
    """Deliver one message; the backend records that it was."""
    await _post(fcm_message(token, title, body, data))


async def _enqueue(count: int) -> None:
    await broker.startup()
    for _ in range(count):
        await deliver.kiq(TOKEN, TITLE, BODY, DATA)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(_enqueue(int(sys.argv[1])))
