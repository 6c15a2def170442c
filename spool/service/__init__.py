"""service - sizes allocations to the backlog and asks the batch system for them."""
