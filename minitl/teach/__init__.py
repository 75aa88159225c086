"""Assignments: from a source with solutions to what students get, and from what they hand in to points.

``source`` makes notebooks of a source, ``submission`` repairs a notebook that was handed in, ``core`` runs it in a
``worker`` with limits and counts points, ``trial`` tests an assignment itself, ``course`` does this for a folder of
students, and ``gradebook`` and ``outputs`` hand the points on.
"""
