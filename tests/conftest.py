"""Fixtures that several kinds of tests share."""

from tests.support.disk import disk
from tests.support.mongodb import mongodb_base, mongodb_url
from tests.support.rabbitmq import amqp_url, rabbitmq
from tests.support.redis import redis_server

__all__ = ["amqp_url", "disk", "mongodb_base", "mongodb_url", "rabbitmq", "redis_server"]
