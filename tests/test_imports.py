"""The package's modules import each other in one direction."""

import graphlib

from draw_structure import PARTS, module_imports, package_imports


def test_no_module_imports_itself_through_others():
    graph = module_imports()
    assert sum(map(len, graph.values())) > len(graph) > 50  # the walk saw the package and its imports
    assert "safe_components.keys" in graph["safe_components.estep.projector"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_parts_never_import_each_other():
    arrows = package_imports()
    assert {("training", "envs"), ("estep", "ops"), ("recipes", "training")} <= set(arrows)
    assert [(source, target) for source, target in arrows if source in PARTS and target in PARTS] == []
