"""Replayable augmentation: views as a function of (seed, sample, view), their sampler, and the probe that proves them."""

from __future__ import annotations

from bookkd.views.cached import CachedViews
from bookkd.views.checks import check_probes, check_replay
from bookkd.views.collate import collate
from bookkd.views.labels import as_label, label_rows
from bookkd.views.mix import CutMix, MixUp
from bookkd.views.order import BlockWindow
from bookkd.views.picks import Pick
from bookkd.views.probe import probe
from bookkd.views.replay import Replay
from bookkd.views.sampler import ViewSampler
from bookkd.views.seeding import isolated, seed_all
from bookkd.views.views import Views, differences, version_differences, versions

__all__ = [
    "BlockWindow",
    "CachedViews",
    "CutMix",
    "MixUp",
    "Pick",
    "Replay",
    "ViewSampler",
    "Views",
    "as_label",
    "check_probes",
    "check_replay",
    "collate",
    "differences",
    "isolated",
    "label_rows",
    "probe",
    "seed_all",
    "version_differences",
    "versions",
]
