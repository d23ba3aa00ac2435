"""What documents, help and packages say."""
