"""Learning from knowledge: one step, called by a plain loop and by Lightning."""

from __future__ import annotations

from bookkd.learning.beginning import begin_run
from bookkd.learning.building import for_networks, learner_for, offer_needs
from bookkd.learning.cohort import Cohort
from bookkd.learning.data import Groups, check_batches, make_groups, visible_labels
from bookkd.learning.learn import learn
from bookkd.learning.learned import Learned, LearningWarning
from bookkd.learning.learner import Learner
from bookkd.learning.loop import fit
from bookkd.learning.measuring import measure, measure_network, measure_sequences, predictions_of
from bookkd.learning.on_policy import OnPolicy
from bookkd.learning.run import Run
from bookkd.learning.step import Step, to_device
from bookkd.learning.training import LearningRate, Training, find_device
from bookkd.learning.validation import Validation

__all__ = [
    "Cohort",
    "Groups",
    "Learned",
    "Learner",
    "LearningRate",
    "LearningWarning",
    "OnPolicy",
    "Run",
    "Step",
    "Training",
    "Validation",
    "begin_run",
    "check_batches",
    "find_device",
    "fit",
    "for_networks",
    "learn",
    "learner_for",
    "make_groups",
    "measure",
    "measure_network",
    "measure_sequences",
    "offer_needs",
    "predictions_of",
    "to_device",
    "visible_labels",
]
