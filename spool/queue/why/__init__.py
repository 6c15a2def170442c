"""why - why a task is where it is and what it waits for, as far as the tree alone can tell.

answer.py is what is said, scene.py what it rests on; then a file for each place where a task can
be: arriving.py (CREATED), waiting.py, ready.py, running.py, ended.py. What launchers and the
service would do with a READY task, launcher/prospects.py and service/outlook.py say;
commands/why.py puts it together. Nothing here changes anything, and each rule is asked of whoever
owns it: `next_place`, the door's, the limits', the picker's, sizing's.
"""
