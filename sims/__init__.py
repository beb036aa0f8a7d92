"""Both parties on one machine: worlds cut from datasets, runs, reports. Only here and in the tests do the two sides meet."""
