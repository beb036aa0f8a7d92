"""All ways in which the program of a node that was taken over hides its data in an answer."""

from sims.boundary.leaks.collective import COLLECTIVE
from sims.boundary.leaks.individual import INDIVIDUAL

LEAKS = (*INDIVIDUAL, *COLLECTIVE)
