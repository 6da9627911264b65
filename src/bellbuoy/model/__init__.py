"""The words of the domain as plain data: notifications, recipients, deliveries, and what an operator sees."""
