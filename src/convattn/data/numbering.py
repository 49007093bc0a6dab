"""The classes of labels that a file names by text or number."""

from collections.abc import Iterable, Mapping

from convattn.errors import UserError


def class_names(labels: Iterable[str], names: list[str] | None, source: str) -> tuple[list[str], Mapping[str, str]]:
    """Return the classes in order, and the class that each label names.

    Args:
        labels: The labels of the images to train on.
        names: The classes, where the data names them: labels are then among them, or numbers that count them from 0.
        source: What errors name.

    Raises:
        UserError: A number counts no class.

    Example:
        >>> class_names(["10", "9"], None, "a.csv")[0], class_names(["dog", "cat"], None, "a.csv")[0]
        (['9', '10'], ['cat', 'dog'])
        >>> class_names(["1", "0", "1"], ["cat", "dog"], "a.csv")[1]
        {'0': 'cat', '1': 'dog'}
    """
    found = set(labels)
    numbers = all(label.isascii() and label.isdecimal() for label in found)
    if names is None:
        return sorted(found, key=int if numbers else None), {}
    if not numbers or found <= set(names):
        return names, {}
    beyond = sorted((label for label in found if int(label) >= len(names)), key=int)
    if beyond:
        raise UserError(
            f"{source}: the label {beyond[0]} counts no class: the {len(names)} classes are 0 to {len(names) - 1}"
        )
    return names, {str(number): name for number, name in enumerate(names)}
