"""Every table and figure of both papers: what they publish and what is counted, timed and trained here.

Papers: Pan et al., *On the Integration of Self-Attention and Convolution* (ACmix), CVPR 2022, with its supplement;
Chen et al., *X-volution: On the Unification of Convolution and Self-attention*, 2021.
"""

from reproduce.catalogue import ENTRIES, find_entries
from reproduce.entries import Entry, Part, Row, Scale
from reproduce.settings import Setting

__all__ = ["ENTRIES", "Entry", "Part", "Row", "Scale", "Setting", "find_entries"]
