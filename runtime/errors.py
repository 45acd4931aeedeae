"""The errors that edgecls expects, grouped by who must act.

Every message says what happened, the value, and the remedy. Anything that is not an `EdgeclsError` is a bug of ours.
"""

from __future__ import annotations


class EdgeclsError(Exception):
    """Base of every expected error; `exit_code` is what the command line returns for it."""

    exit_code = 70


class InputError(EdgeclsError):
    """The user's data or options: they must be changed."""

    exit_code = 2


class InvalidRecordError(InputError, ValueError):
    """A record's fields contradict what they mean.

    It is a `ValueError` too, so that msgspec reports it, with the field's place, as its own `ValidationError` when the
    record is being decoded: who decodes a file has one kind of exception to expect.
    """


class MissingExtraError(EdgeclsError):
    """A package of an optional extra is not installed.

    Args:
        extra: Name of the pip extra that brings it, for example `openvino`.
        purpose: What it is needed for, as the beginning of a sentence.
        found: What stands in the way when the package is there but unusable.
    """

    exit_code = 5

    def __init__(self, extra: str, purpose: str, found: str = "it is not installed") -> None:
        super().__init__(f"{purpose} needs the extra '{extra}' ({found}): pip install 'edgecls[{extra}]'")
        self.extra = extra


class UnsupportedError(EdgeclsError):
    """This target, precision or device cannot do what was asked."""

    exit_code = 5


class BundleError(EdgeclsError):
    """A bundle is damaged, hostile or newer than this edgecls: get or make another one."""

    exit_code = 6


class EngineError(EdgeclsError):
    """An inference engine failed on a graph or an input that we believed to be good."""

    exit_code = 7
