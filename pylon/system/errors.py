"""The error for mistakes that the user can correct. This file imports nothing."""


class UserError(ValueError):
    """A user's mistake: one sentence that names the file or the option, and what to do."""
