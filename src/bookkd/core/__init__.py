"""Errors, checks, counter-based randomness, schedules, names of fields: what every other room stands on. Free of torch."""
