"""calls - Python functions as tasks: executor.py (concurrent.futures), function.py (@function).

courier.py sends calls in batches and fetches their results; sizes.py says how large a batch is;
local.py keeps a launcher of one's own; handles.py waits for tasks and futures.
"""
