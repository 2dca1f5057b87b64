"""Disturbs commands in the middle and checks that they recover."""
