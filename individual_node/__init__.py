"""The individual's side: verify a learngene, inherit it, adapt it to a few images of its own.

Public, each by its own module (nothing is imported here, so that a node can be confined before torch is loaded):

- ``individual_node.methods.Evaluation``: every method on every target task of the individual's folder.
- ``individual_node.settings.IndividualSettings``: which methods, and how they adapt.
- ``individual_node.method_table.METHODS``: every method: its form, how it adapts, whose Fisher diagonal it uses.
- ``individual_node.target_tasks``: the individual's folder, and ``TargetTask``.
- ``individual_node.reconstruction``: networks built from a learngene's own description: ``reconstruct``,
  ``IndividualNetwork``.
- ``individual_node.adaptation``: ``adapt`` (Eq. 9), ``test_accuracy``.
- ``individual_node.feature_head``: the logistic head on inherited features: ``fit_feature_head``,
  ``FeatureHeadNetwork``; on those of a trained network: ``head_on_network``.
- ``individual_node.floor.floor_predictions``: the accuracy that is possible without any learngene.
- ``individual_node.personal_model.adapt_to_pictures``: one model of one's own pictures;
  ``individual_node.image_folder`` reads them, ``individual_node.adapted`` saves and loads the model,
  ``individual_node.onnx_export`` writes it as ONNX.
- ``individual_node.program.make``: the node's program; the command ``individual-node`` starts it.

Everything else may change without notice. ``docs/python-api.md`` has a whole example, ``docs/using-a-learngene.md`` the
commands for one's own pictures.
"""
