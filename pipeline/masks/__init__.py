"""Masks after the head: pasting, scoring, references, drawings."""
