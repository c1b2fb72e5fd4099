"""The one exception that stands for a user's mistake."""


class BertfastError(Exception):
    """Something the user can put right; its text is one line that says what came, what is wanted
    and what to do.

    The command line prints it after ``error:`` and exits with 2; nothing is overwritten or lost.
    """
