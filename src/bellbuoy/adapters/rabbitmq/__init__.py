"""`bellbuoy.ports.queue` on RabbitMQ."""

from bellbuoy.adapters.rabbitmq.queue import RabbitQueue

__all__ = ["RabbitQueue"]
