"""Answering files and streams of records without a server: from where, to where, and how many."""
