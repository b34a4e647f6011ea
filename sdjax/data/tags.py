"""Captions as they are varied while a model is trained, and tags within them."""

from dataclasses import dataclass

import numpy as np

from sdjax.errors import SdjaxError, check_at_least


@dataclass(frozen=True)
class CaptionConfig:
    """What becomes of a picture's caption before it is read."""

    prompt: str = ""
    """In place of every caption; {} in it stands for the picture's own."""
    shuffle: bool = False
    """Draw the order of the tags anew each time."""
    keep: int = 0
    """Tags at the beginning that keep their places and are never dropped."""
    separator: str = ","
    """What stands between tags."""
    tag_dropout: float = 0.0
    """Share of the tags that are left out each time."""

    def __post_init__(self):
        check_at_least(0, self, "keep")
        if not 0 <= self.tag_dropout < 1:
            raise SdjaxError(f"captions.tag_dropout must be in [0, 1), got {self.tag_dropout}")
        if not self.separator:
            raise SdjaxError("captions.separator is empty: expected what stands between tags")

    @property
    def varies(self) -> bool:
        """Whether a caption is another each time."""
        return self.shuffle or bool(self.tag_dropout)

    @property
    def takes_own(self) -> bool:
        """Whether pictures need captions of their own."""
        return not self.prompt or "{}" in self.prompt

    def of(self, caption: str) -> str:
        """The caption with the prompt around it, around each line where it has several."""
        if not self.prompt:
            return caption
        lines = caption.split("\n") if "{}" in self.prompt else [""]
        return "\n".join(self.prompt.replace("{}", line) for line in lines)

    def varied(self, caption: str, random: np.random.Generator) -> str:
        """One of the caption's lines, drawn, with its tags shuffled and dropped."""
        lines = caption.split("\n")
        if len(lines) > 1:
            caption = lines[random.integers(len(lines))]
        if not self.varies:
            return caption
        tags = [tag.strip() for tag in caption.split(self.separator)]
        kept, others = tags[:self.keep], tags[self.keep:]
        if self.shuffle:
            others = [others[i] for i in random.permutation(len(others))]
        if self.tag_dropout:
            stays = random.random(len(others)) >= self.tag_dropout
            others = [tag for tag, stay in zip(others, stays, strict=True) if stay]
        joint = self.separator if self.separator.isspace() else f"{self.separator} "
        return joint.join(kept + others)
