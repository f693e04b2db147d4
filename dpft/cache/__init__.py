"""A frozen backbone's outputs, computed once and kept on disk: later epochs run only what trains.

``taps.py`` listens to a model's modules or answers in their place; ``frozen.py`` finds and proves what stays the same
for the whole training; ``replay.py`` records and replays it; ``store.py`` is the file, ``shared.py`` a folder of many
for several runs; ``build.py`` fills it; ``task.py`` is a run's use of all that.
"""
