"""No circles: following the imports of a file never leads back to it."""

from graphlib import TopologicalSorter

import grimp

ROOTS = ("bench", "config", "fleet", "engines", "policy", "audit", "common")


def test_no_files_import_each_other_in_a_circle():
    """Also not inside functions, and not for a type checker alone: both would only hide the circle."""
    graph = grimp.build_graph(*ROOTS, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imported).prepare()  # raises CycleError, which names the files
