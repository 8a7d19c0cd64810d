"""A folder of images and masks: opened, checked, split; the built-in sample set; what training draws from it.

It is a package of its own so that every problem with the data is reported before any training, and
everything outside sees arrays in one form: images uint8 HWC, masks uint8 HW with class numbers, 255 for
void. Modules that need torch, such as `augment` and `loader`, are not imported here.
"""

from compress.data.check import check, require_sound
from compress.data.classes import ClassTable
from compress.data.folder import ChannelChoice, Dataset, open_dataset
from compress.data.layout import SPLITS, Sample, Split, split_of
from compress.data.lookup import lookup_table_miou
from compress.data.report import DatasetReport, render
from compress.data.sample import write_sample
from export.scoring import VOID

__all__ = [
    "SPLITS",
    "VOID",
    "ChannelChoice",
    "ClassTable",
    "Dataset",
    "DatasetReport",
    "Sample",
    "Split",
    "check",
    "lookup_table_miou",
    "open_dataset",
    "render",
    "require_sound",
    "split_of",
    "write_sample",
]
