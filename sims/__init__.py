"""Both parties on one machine: worlds, runs, reports. Only here and in the tests do the two sides meet.

Public, each by its own module:

- ``sims.data.images``: ``load_source`` (a folder, a download or the stand-in), ``draw_stand_in``.
- ``sims.data.world_plan.WorldPlan``: how a dataset is cut.
- ``sims.data.worlds``: ``make_world``, ``load_world``: one private folder per party.
- ``sims.run.options``, ``sims.run.profiles``; ``sims.run.settings``: ``RunSettings``, ``from_run_config``.
- ``sims.run.runner.run``: the main job from beginning to end, as ``learngene run`` does it.
- ``sims.results.models``: ``load`` and ``Results``, the content of ``results.json``; ``sims.results.report.write``.
- ``sims.results.statistics``: means, 95 % intervals, paired differences.

Everything else may change without notice. ``docs/python-api.md`` has a whole example.
"""
