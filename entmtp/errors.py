"""The one exception that a user's mistake raises."""


class EntMTPError(ValueError):
    """Bad input or an unsupported model.

    The message is a single line that names the field, the value and the fix; the command line prints it without a
    traceback and the HTTP layer wraps it in an OpenAI-style error body.
    """
