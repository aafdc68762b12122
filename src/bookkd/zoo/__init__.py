"""Reference networks, data sets and augmentations for demo, examples and benchmarks; users bring their own by path."""

from bookkd.zoo.datasets import open_dataset
from bookkd.zoo.decoding import Decoding, continued
from bookkd.zoo.fingerprints import fingerprint
from bookkd.zoo.images import ArrayDataset, ImageDataset, SubsetDataset, VectorDataset
from bookkd.zoo.language import (
    LanguageModel,
    create_causal_lm,
    load_causal_lm,
    load_tokenizer,
    pack,
    positions_within,
    special_tokens,
    tokenizer_digest,
)
from bookkd.zoo.networks import create_network
from bookkd.zoo.pairs import PairedTokens
from bookkd.zoo.preprocess import Preprocess, create_preprocess
from bookkd.zoo.sequences import TokenDataset
from bookkd.zoo.tables import DATASETS, FAMILIES, FILELESS, NETWORKS, SEQUENCES, TRANSFORMS
from bookkd.zoo.tagging import GRUTagger, SequenceDataset
from bookkd.zoo.texts import TextClassifier, TextDataset, create_text_classifier, load_text_classifier
from bookkd.zoo.transforms import create_transform
from bookkd.zoo.weights import load_weights, save_weights, weights_digest

__all__ = [
    "DATASETS",
    "FAMILIES",
    "FILELESS",
    "NETWORKS",
    "SEQUENCES",
    "TRANSFORMS",
    "ArrayDataset",
    "Decoding",
    "GRUTagger",
    "ImageDataset",
    "LanguageModel",
    "PairedTokens",
    "Preprocess",
    "SequenceDataset",
    "SubsetDataset",
    "TextClassifier",
    "TextDataset",
    "TokenDataset",
    "VectorDataset",
    "continued",
    "create_causal_lm",
    "create_network",
    "create_preprocess",
    "create_text_classifier",
    "create_transform",
    "fingerprint",
    "load_causal_lm",
    "load_text_classifier",
    "load_tokenizer",
    "load_weights",
    "open_dataset",
    "pack",
    "positions_within",
    "save_weights",
    "special_tokens",
    "tokenizer_digest",
    "weights_digest",
]
