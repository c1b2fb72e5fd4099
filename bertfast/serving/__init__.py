"""A server for trained models, and its page: `bertfast serve` and `bertfast app`."""
