"""What stands in the job file, and who holds it: format, locks, claims, directives, changes by others.

Whatever happens to the file or its locks, each job runs once, and no byte is misplaced.
"""
