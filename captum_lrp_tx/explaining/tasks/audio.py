"""Classes of audio: wav2vec 2.0 and its like, Whisper's encoder, the spectrogram transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from captum_lrp_tx.explaining.audio import sound_of
from captum_lrp_tx.explaining.tasks.base import Case, Choice, Task, Wish, refuse_answer
from captum_lrp_tx.explaining.tasks.classes import class_choice, each_class
from captum_lrp_tx.explaining.texts import Reader


class AudioClassification(Task):
    """Classes of a sound."""

    name = "audio classification"
    has_all = True

    def cases(self, item: Any, reader: Reader, wish: Wish) -> Iterator[Case]:
        refuse_answer(self.name, wish)
        sound = sound_of(item, reader)

        def arrange(relevances: Mapping[str, Tensor], _: Choice) -> tuple[None, Tensor]:
            return None, sound.arranged(relevances[sound.key])

        for one in each_class(wish, reader.model, sound.inputs):
            yield Case(
                self.name, reader.model, sound.inputs, class_choice(one, reader.config), arrange,
                audio=sound.arranged(sound.inputs[sound.key]), seconds=sound.seconds,
                warnings=sound.warnings,
            )  # fmt: skip
