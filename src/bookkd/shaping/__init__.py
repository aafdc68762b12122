"""What is done to a student: gates inside its layers, and a student that is made of gates.

A method returns a `Shaped` from its `shape`; see `bookkd.methods.Method`.
"""

from __future__ import annotations

from bookkd.shaping.base import ParameterGroup, Shaped, penalty
from bookkd.shaping.gates import GATE_ENTROPY, GateTable, gate_record, gate_shares, table_of
from bookkd.shaping.tree import GateTree, ShapedTree
from bookkd.shaping.vam import GatedStudent, VirtualGates, find_classifier, fold, gates_of, insert_gates

__all__ = [
    "GATE_ENTROPY",
    "GateTable",
    "GateTree",
    "GatedStudent",
    "ParameterGroup",
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
