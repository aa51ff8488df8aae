"""Programs that echo, one for each of the libraries on the scoreboard, as their documentation shows it.

They import nothing of this project but ``program``, and run in an environment of their own.
"""
