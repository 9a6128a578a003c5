"""Errors that a person can mend; the command line prints them as one line and exits with 1."""


class UserError(Exception):
    """Something outside the program is wrong; the message names the thing and the mend."""


class ConfigError(UserError, ValueError):
    """A configuration cannot be read or built; the message names the file, the line and the nearest valid name."""


class RunError(UserError):
    """A run folder or a checkpoint cannot be read or written; the message names the file and what is still good."""
