"""How a test says which rows of methods.json it is about, and what it found short of a pass."""

import pytest

import lane


def works(*rows):
    """These methods are called the way they are meant to be."""

    def mark(test):
        test.works = getattr(test, "works", ()) + rows
        return test

    return mark


def fails(*rows):
    """These methods are called with something that cannot work, and the error is checked."""

    def mark(test):
        test.fails = getattr(test, "fails", ()) + rows
        return test

    return mark


def quick(test):
    """Part of the quick run."""
    test.quick = True
    return test


def differs(row, note):
    """The method does what it should except for this."""
    lane.current.differs.append({"row": row, "note": note})


def not_yet(reason):
    """The server does not offer this yet: the test ends here and starts to count once it does."""
    pytest.skip(f"not yet: {reason}")
