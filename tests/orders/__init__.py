"""What holds in every order of events: histories, storms; each has a seed."""
