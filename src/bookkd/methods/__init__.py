"""Published methods, one file each; the module docstring of a method is its card."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose, import_reference, is_reference, look_up, nearest
from bookkd.methods.ab import AB
from bookkd.methods.adaptive_label_smoothing import AdaptiveLabelSmoothing
from bookkd.methods.at import AT
from bookkd.methods.base import BaseMethod, Card, Handler, Method
from bookkd.methods.bookkd import BookKD
from bookkd.methods.cc import CC
from bookkd.methods.ccd import CCD
from bookkd.methods.ccskd import CCSKD
from bookkd.methods.cons_kd import ConsKD
from bookkd.methods.crd import CRD
from bookkd.methods.csc_ace import CSCACE
from bookkd.methods.cskd import CSKD
from bookkd.methods.ctc_kd import CTCKD
from bookkd.methods.cwd import CWD
from bookkd.methods.dil import DIL
from bookkd.methods.dist import DIST
from bookkd.methods.dkd import DKD
from bookkd.methods.dml import DML
from bookkd.methods.extractive_kd import ExtractiveKD
from bookkd.methods.fitnets import FitNets
from bookkd.methods.fsp import FSP
from bookkd.methods.ft import FT
from bookkd.methods.instance_label_smoothing import BetaLabelSmoothing, SelfDistillation
from bookkd.methods.kdexplainer import KDExplainer
from bookkd.methods.llm_kd import LLMKD
from bookkd.methods.logit_standardization import LogitStandardization
from bookkd.methods.mlkd import MLKD
from bookkd.methods.nst import NST
from bookkd.methods.ofd import OFD
from bookkd.methods.pkt import PKT
from bookkd.methods.reviewkd import ReviewKD
from bookkd.methods.rkd import RKD
from bookkd.methods.simkd import SimKD
from bookkd.methods.skd import SKD
from bookkd.methods.sp import SP
from bookkd.methods.supervised import Supervised
from bookkd.methods.takd import TAKD
from bookkd.methods.tfkd import TfKDReg, TfKDSelf
from bookkd.methods.uld import ULD
from bookkd.methods.vam import VAM
from bookkd.methods.vanilla_kd import VanillaKD
from bookkd.methods.vid import VID

__all__ = [
    "AB",
    "AT",
    "CC",
    "CCD",
    "CCSKD",
    "CRD",
    "CSCACE",
    "CSKD",
    "CTCKD",
    "CWD",
    "DIL",
    "DIST",
    "DKD",
    "DML",
    "FSP",
    "FT",
    "LLMKD",
    "METHODS",
    "MLKD",
    "NST",
    "OFD",
    "PKT",
    "RKD",
    "SKD",
    "SP",
    "TAKD",
    "ULD",
    "VAM",
    "VID",
    "AdaptiveLabelSmoothing",
    "BaseMethod",
    "BetaLabelSmoothing",
    "BookKD",
    "Card",
    "ConsKD",
    "ExtractiveKD",
    "FitNets",
    "Handler",
    "KDExplainer",
    "LogitStandardization",
    "Method",
    "ReviewKD",
    "SelfDistillation",
    "SimKD",
    "Supervised",
    "TfKDReg",
    "TfKDSelf",
    "VanillaKD",
    "build_method",
    "method_class",
]

METHODS = {
    "ab": "bookkd.methods.ab:AB",
    "adaptive-label-smoothing": "bookkd.methods.adaptive_label_smoothing:AdaptiveLabelSmoothing",
    "at": "bookkd.methods.at:AT",
    "beta-smoothing": "bookkd.methods.instance_label_smoothing:BetaLabelSmoothing",
    "bookkd": "bookkd.methods.bookkd:BookKD",
    "cc": "bookkd.methods.cc:CC",
    "ccd": "bookkd.methods.ccd:CCD",
    "ccskd": "bookkd.methods.ccskd:CCSKD",
    "cons-kd": "bookkd.methods.cons_kd:ConsKD",
    "crd": "bookkd.methods.crd:CRD",
    "csc-ace": "bookkd.methods.csc_ace:CSCACE",
    "cskd": "bookkd.methods.cskd:CSKD",
    "ctc-kd": "bookkd.methods.ctc_kd:CTCKD",
    "cwd": "bookkd.methods.cwd:CWD",
    "dil-seq2seq": "bookkd.methods.dil:DIL",
    "dist": "bookkd.methods.dist:DIST",
    "dkd": "bookkd.methods.dkd:DKD",
    "dml": "bookkd.methods.dml:DML",
    "extractive-kd": "bookkd.methods.extractive_kd:ExtractiveKD",
    "fitnets": "bookkd.methods.fitnets:FitNets",
    "fsp": "bookkd.methods.fsp:FSP",
    "ft": "bookkd.methods.ft:FT",
    "kdexplainer": "bookkd.methods.kdexplainer:KDExplainer",
    "llm-kd": "bookkd.methods.llm_kd:LLMKD",
    "logit-standardization": "bookkd.methods.logit_standardization:LogitStandardization",
    "mlkd": "bookkd.methods.mlkd:MLKD",
    "nst": "bookkd.methods.nst:NST",
    "ofd": "bookkd.methods.ofd:OFD",
    "pkt": "bookkd.methods.pkt:PKT",
    "reviewkd": "bookkd.methods.reviewkd:ReviewKD",
    "rkd": "bookkd.methods.rkd:RKD",
    "self-distillation": "bookkd.methods.instance_label_smoothing:SelfDistillation",
    "simkd": "bookkd.methods.simkd:SimKD",
    "skd": "bookkd.methods.skd:SKD",
    "sp": "bookkd.methods.sp:SP",
    "supervised": "bookkd.methods.supervised:Supervised",
    "takd": "bookkd.methods.takd:TAKD",
    "tfkd-reg": "bookkd.methods.tfkd:TfKDReg",
    "tfkd-self": "bookkd.methods.tfkd:TfKDSelf",
    "uld": "bookkd.methods.uld:ULD",
    "vam": "bookkd.methods.vam:VAM",
    "vanilla-kd": "bookkd.methods.vanilla_kd:VanillaKD",
    "vid": "bookkd.methods.vid:VID",
}
"""Method name -> class. One line a method; a test holds this table equal to the cases."""

_PARTS = ("name", "card", "presets", "cohort", "passes", "objective", "needs", "handlers", "own_knowledge", "shape")


def method_class(name: str) -> type[Method]:
    """Return the class of a method by name, or of the user's own by `package.module:Name`.

    >>> method_class("vanilla-kd").__name__
    'VanillaKD'

    Raises:
        UnknownNameError: for an unknown name.
        ConfigError: if what the name leads to is no method.
    """
    found: type[Method] = import_reference(name, "method") if is_reference(name) else look_up(name, METHODS, "method")
    _check_method(found, name)
    return found


def _check_method(found: Any, name: str) -> None:
    lacking = [part for part in _PARTS if not hasattr(found, part)]
    if lacking or not isinstance(found, type) or not is_dataclass(found):
        got = f"one without {', '.join(lacking)}" if lacking else "something else"
        do = "Derive it from bookkd.methods.BaseMethod."
        raise ConfigError(expected("method", f"a dataclass with {', '.join(_PARTS)}", got, where=name, do=do))


def build_method(name: str, preset: str | None = None, **values: Any) -> Method:
    """Make a method from plain values: the class's defaults, then a preset's, then `values`.

    Args:
        name: Name in `METHODS`, or `package.module:Name`.
        preset: A named set of values that reproduces another library, see the method's card.
        values: Fields of the method's dataclass.

    Raises:
        UnknownNameError: for an unknown method or preset; the nearest are listed.
        ConfigError: for an unknown field.

    >>> build_method("vanilla-kd", preset="keras", temperature=2.0).t_squared
    False
    """
    chosen = method_class(name)
    if preset is not None:
        values = {**chosen.presets[choose(preset, chosen.presets, "preset", where=f"method {name}")], **values}
    known = [entry.name for entry in fields(chosen)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = ", ".join(nearest(key, known)[:5]) or "none"
            raise ConfigError(f"Expected an option of method {name}, got {key!r}. Nearest: {near}.")
    return chosen(**values)
