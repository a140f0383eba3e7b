"""Damaged and hostile inputs: mutants of sound ones, each read in a watched child process."""
