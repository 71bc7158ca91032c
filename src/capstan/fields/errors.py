"""What can go wrong in this room. Every message names the place in the object and what to do."""

from __future__ import annotations


class FieldsError(Exception):
    """Base of this room's errors."""


class InvalidFieldSet(FieldsError):
    """`metadata.managedFields` holds something that is not a fieldsV1 document."""


class InvalidApply(FieldsError):
    """The applied configuration cannot be merged: it names managed fields, repeats a list key or omits one."""


class InvalidPatch(FieldsError):
    """The patch document itself is malformed; the API answers 400 or 422."""


class PatchFailed(FieldsError):
    """A well-formed patch does not fit the object: a missing path or a failed `test`; the API answers 422."""
