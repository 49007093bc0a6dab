"""The error that a person meets: one message that says what arrived, what was expected and what to do."""


class UserError(ValueError):
    """Something that the person can put right; the command prints its message alone and exits with code 2.

    Example:
        >>> raise UserError("no such folder: photos/ (give --data a folder of images)")
        Traceback (most recent call last):
        ...
        convattn.errors.UserError: no such folder: photos/ (give --data a folder of images)
    """
