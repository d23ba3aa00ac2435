"""What documents, help and packages say; and how the tests themselves are run and counted."""
