"""Identity answers in keystone's form; a full quota does not occur here."""

from cumulet.http import KeystoneFaults

FAULTS = KeystoneFaults()
