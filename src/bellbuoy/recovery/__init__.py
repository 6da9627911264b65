"""How a failure is mended: plans, one runner for each, incidents, escalation, rollback, scaling."""
