"""Merges: their options and plans, checks of what goes in, experts that join or leave, router rows."""
