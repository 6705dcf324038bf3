"""Looking at a running broker from outside: what it refuses, what it keeps, whom it lets in."""
