"""Learners of texts, one a file, and what they are made of.

A configuration names learners as `models.registry` does.
"""
