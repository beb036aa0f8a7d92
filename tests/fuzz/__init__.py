"""Fuzzing of what reads bytes from outside: targets, seeds, mutations, and the program that runs them with atheris."""
