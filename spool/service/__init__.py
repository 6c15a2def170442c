"""The service: it sizes allocations to the backlog and asks the batch system for them."""
