"""The one exception that stands for a user's mistake."""

LONGEST = 2000  # characters of a message


class BertfastError(Exception):
    """Something the user can put right; its text is one line that says what came, what is wanted
    and what to do.

    The command line prints it after ``error:`` and exits with 2; nothing is overwritten or lost.
    A text beyond `LONGEST` characters, of a file's own long value say, loses its middle.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if len(text) > LONGEST:
            half = LONGEST // 2
            text = f"{text[:half]} [... {len(text) - LONGEST:,} more ...] {text[-half:]}"
        super().__init__(text)
