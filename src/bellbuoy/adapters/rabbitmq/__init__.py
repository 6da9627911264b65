"""`bellbuoy.ports.queue` on RabbitMQ."""

from bellbuoy.adapters.rabbitmq.backup import RabbitPlace, RabbitSource
from bellbuoy.adapters.rabbitmq.queue import RabbitQueue

__all__ = ["RabbitPlace", "RabbitQueue", "RabbitSource"]
