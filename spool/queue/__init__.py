"""queue - the tree and everything that moves tasks through it.

layout names · files the seam · manifest, history, shape, place what a task is and where it belongs
owner leases · tasks reading · submit, admit entering · claim, takeover, advance moving
limits tokens · control a person's verbs · select which tasks · journal events · check faults
census counting · wait · init, doctor (ground, rates) is this file system fit · processes, watch
"""
