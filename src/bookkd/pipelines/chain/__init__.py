"""`chain`: each network learns from the book of the one before and writes the next, with no teacher in memory.

Teacher assistants (56 -> 20 -> 8) and generations of self-distillation (8 -> 8 -> 8) are the same pipeline; all paths of a set
share what they have in common, so that a network with the same teachers behind it is trained once.
"""

from __future__ import annotations

from bookkd.pipelines.chain.choice import nearest_to_mean, run_with_assistant
from bookkd.pipelines.chain.links import Chain, all_paths, folder_name
from bookkd.pipelines.chain.run import run_chain
from bookkd.pipelines.chain.words import chain_of, networks_of

__all__ = [
    "Chain",
    "all_paths",
    "chain_of",
    "folder_name",
    "nearest_to_mean",
    "networks_of",
    "run_chain",
    "run_with_assistant",
]
