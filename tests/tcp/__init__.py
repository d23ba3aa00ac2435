"""Server and client."""
