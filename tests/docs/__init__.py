"""What documents, help and packages say is so; and how the tests themselves are run and counted."""
