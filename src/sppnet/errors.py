"""The one exception that is addressed to the person at the keyboard."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was expected, what came, what to do. The command line prints it and exits with 2.
    """
