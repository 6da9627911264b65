"""The ledger that several machines share: a MongoDB replica set. Needs `pip install 'bellbuoy[cluster]'`."""

from bellbuoy.adapters.mongodb.ledger import MongoLedger
from bellbuoy.adapters.mongodb.restore import MongoPlace

__all__ = ["MongoLedger", "MongoPlace"]
