"""Training programs with one algorithm per file, to run as they are or to copy and edit.

In a clone, run ``python recipes/cvpo.py``. The installed package holds the same files as
``safe_components.recipes``. The command ``safe-components`` lists, runs and copies them.
"""
