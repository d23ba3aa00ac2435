"""What tests share, by subject: see tests/README.md."""
