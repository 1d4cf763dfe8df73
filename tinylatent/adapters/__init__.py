"""Adapters: the only place where other people's libraries meet the core. Import the one you need by its full name."""
