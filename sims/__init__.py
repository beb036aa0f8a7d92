"""Both parties on one machine: worlds, runs, reports. Only here and in the tests do the two sides meet.

Public, each by its own module:

- ``sims.images``: ``load_source`` (a folder, a download or the stand-in), ``draw_stand_in``.
- ``sims.worlds``: ``make_world``, ``load_world``, ``WorldPlan``: one private folder per party.
- ``sims.settings``: the profiles, ``RunSettings``, ``from_run_config``.
- ``sims.runner.run``: the main job from beginning to end, as ``learngene run`` does it.
- ``sims.results``: ``load`` and ``Results``, the content of ``results.json``; ``sims.report.write``.
- ``sims.statistics``: means, 95 % intervals, paired differences.

Everything else may change without notice. ``docs/python-api.md`` has a whole example.
"""
