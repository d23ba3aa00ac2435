"""What stands in the job file: bytes, locks, claims, edits, directives."""
