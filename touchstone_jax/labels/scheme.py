"""What the numbers of a label map mean, and what a class is called in another scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scheme:
    """The meaning of the numbers in a label map.

    Attributes:
        name: short name of the scheme.
        indices: class name to its label (from 1; 0 is background).
        renamed: own class name to AbdomenAtlas' where they differ; many may go to one.
        paired: class that holds a left and a right organ to (left, right).
        partial: its label maps hold other organs too, which are background here; else a label
            that is not listed is an error.
    """

    name: str
    indices: Mapping[str, int]
    renamed: Mapping[str, str] = field(default_factory=dict)
    paired: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    partial: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels, the background left out."""
        return tuple(sorted(self.indices, key=self.indices.__getitem__))

    @property
    def num_classes(self) -> int:
        """Highest label + 1: the classes of a softmax, the background included."""
        return 1 + max(self.indices.values())

    def names_in(self, target: Scheme, own: str) -> tuple[str, ...]:
        """What the class ``own`` is called in ``target``: one name, or (left, right) of a pair.

        Names may come back that ``target`` has no place for.
        """
        if own in target.indices:
            return (own,)
        return self.paired.get(own) or (self.renamed.get(own, own),)

    def missing_from(self, target: Scheme) -> tuple[str, ...]:
        """Classes of ``target`` that this scheme does not annotate, in the order of ``target``."""
        known = {name for own in self.indices for name in self.names_in(target, own)}
        return tuple(name for name in target.classes if name not in known)
