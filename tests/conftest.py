"""Fixtures that several kinds of tests share."""

from tests.support.mongodb import mongodb_base, mongodb_url
from tests.support.rabbitmq import amqp_url, rabbitmq
from tests.support.redis import redis_server

__all__ = ["amqp_url", "mongodb_base", "mongodb_url", "rabbitmq", "redis_server"]
