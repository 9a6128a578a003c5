"""Errors that a person can mend; the command line prints them as one line and exits with 1."""


class UserError(Exception):
    """Something outside the program is wrong; the message names the thing and the mend."""
