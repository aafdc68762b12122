"""What is done to a student: gates inside its layers, a student that is made of gates, and one with the teacher's classifier.

A method returns a `Shaped` from its `shape`; see `bookkd.methods.Method`.
"""

from __future__ import annotations

from bookkd.shaping.base import Known, ParameterGroup, Shaped, penalty
from bookkd.shaping.gates import GATE_ENTROPY, GateTable, gate_record, gate_shares, table_of
from bookkd.shaping.reuse import REUSED, ReusedClassifier, ReusingStudent
from bookkd.shaping.tree import GateTree, ShapedTree
from bookkd.shaping.vam import GatedStudent, VirtualGates, find_classifier, fold, gates_of, insert_gates

__all__ = [
    "GATE_ENTROPY",
    "REUSED",
    "GateTable",
    "GateTree",
    "GatedStudent",
    "Known",
    "ParameterGroup",
    "ReusedClassifier",
    "ReusingStudent",
    "Shaped",
    "ShapedTree",
    "VirtualGates",
    "find_classifier",
    "fold",
    "gate_record",
    "gate_shares",
    "gates_of",
    "insert_gates",
    "penalty",
    "table_of",
]
