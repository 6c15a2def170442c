"""service - asks batch systems for allocations; built by a later version."""
