"""Reference networks, data sets and augmentations for demo, examples and benchmarks; users bring their own by path."""

from bookkd.zoo.acoustic import AcousticModel
from bookkd.zoo.class_subsets import ClassSubset, class_subset, find_classes
from bookkd.zoo.continuing import Decoding, continued
from bookkd.zoo.datasets import open_dataset
from bookkd.zoo.decoding import Hypothesis, decode
from bookkd.zoo.fingerprints import fingerprint, known_as
from bookkd.zoo.fitting import check_takes, positions_of
from bookkd.zoo.images import ArrayDataset, ImageDataset, SubsetDataset, VectorDataset
from bookkd.zoo.language import (
    LanguageModel,
    create_causal_lm,
    documents_apart,
    keeps_apart,
    load_causal_lm,
    pack,
    positions_within,
    separator_of,
    takes,
)
from bookkd.zoo.mask_folders import CAMVID, MaskFolders, camvid, image_masks
from bookkd.zoo.masks import MaskDataset, shapes
from bookkd.zoo.networks import brings_weights, count_parameters, create_network
from bookkd.zoo.paired_tokens import PairedTokens
from bookkd.zoo.pairs import PairDataset, read_pairs
from bookkd.zoo.preprocess import Preprocess, create_preprocess
from bookkd.zoo.recordings import spoken_digits
from bookkd.zoo.seq2seq import Seq2SeqModel, create_seq2seq, load_seq2seq
from bookkd.zoo.sequences import TokenDataset
from bookkd.zoo.sounds import log_mel
from bookkd.zoo.spec_augment import SpecAugment
from bookkd.zoo.speech import SpeechDataset, Utterance, read_speech
from bookkd.zoo.tables import DATASETS, FAMILIES, FILELESS, MASKS, NETWORKS, SEQUENCES, TRANSFORMS
from bookkd.zoo.tagging import GRUTagger, SequenceDataset
from bookkd.zoo.texts import EncoderModel, TextClassifier, TextDataset, create_text_classifier, load_text_classifier
from bookkd.zoo.transformers_files import load_tokenizer, plain_tokenizer, special_tokens, tokenizer_digest
from bookkd.zoo.transforms import create_transform
from bookkd.zoo.translation import TranslationTransformer
from bookkd.zoo.unet import UNet
from bookkd.zoo.weights import load_weights, save_weights, weights_digest

__all__ = [
    "CAMVID",
    "DATASETS",
    "FAMILIES",
    "FILELESS",
    "MASKS",
    "NETWORKS",
    "SEQUENCES",
    "TRANSFORMS",
    "AcousticModel",
    "ArrayDataset",
    "ClassSubset",
    "Decoding",
    "EncoderModel",
    "GRUTagger",
    "Hypothesis",
    "ImageDataset",
    "LanguageModel",
    "MaskDataset",
    "MaskFolders",
    "PairDataset",
    "PairedTokens",
    "Preprocess",
    "Seq2SeqModel",
    "SequenceDataset",
    "SpecAugment",
    "SpeechDataset",
    "SubsetDataset",
    "TextClassifier",
    "TextDataset",
    "TokenDataset",
    "TranslationTransformer",
    "UNet",
    "Utterance",
    "VectorDataset",
    "brings_weights",
    "camvid",
    "check_takes",
    "class_subset",
    "continued",
    "count_parameters",
    "create_causal_lm",
    "create_network",
    "create_preprocess",
    "create_seq2seq",
    "create_text_classifier",
    "create_transform",
    "decode",
    "documents_apart",
    "find_classes",
    "fingerprint",
    "image_masks",
    "keeps_apart",
    "known_as",
    "load_causal_lm",
    "load_seq2seq",
    "load_text_classifier",
    "load_tokenizer",
    "load_weights",
    "log_mel",
    "open_dataset",
    "pack",
    "plain_tokenizer",
    "positions_of",
    "positions_within",
    "read_pairs",
    "read_speech",
    "save_weights",
    "separator_of",
    "shapes",
    "special_tokens",
    "spoken_digits",
    "takes",
    "tokenizer_digest",
    "weights_digest",
]
