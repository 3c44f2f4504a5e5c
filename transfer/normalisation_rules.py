"""What each published program does to a trial before its model sees it, by name.

What comes in: nothing. What goes out: `NORMALISATIONS`, whose rules `normalisation.py` follows.

    name               stimulus              behavior   pupil centre   responses         statistics
    none               as recorded           as it is   as it is       raw
    dwiseneuro         as recorded           as it is   as it is       raw, max(0, x)
    sensorium2023      (x - mean) / std      x / std    z-score        per_frame_std     the source's, per frame
    viv1t_0            as recorded           as it is   as it is       raw
    viv1t_1            (x - mean) / std      x / std    z-score        per_frame_std     own, per frame
    viv1t_2            (x - mean) /          min-max    min-max        per_frame_std     own, per frame
                       (std - mean)
    viv1t_3, viv1t_4   as 1; min-max in all  as 1       as 1           per_frame_std     own, over time
    viv1t_provided_1, viv1t_provided_2       as 1 and 2 with the source's statistics (`--stat_mode 0`)
    viv1t_closed_loop  (x - mean) / std      x / std    z-score        per_neuron_std    own, over time (video: one)
    sensorium2022      (x - mean) / std      x / std    z-score        per_neuron_std    the source's, one for images
    v1t                as sensorium2022

Behavior keeps its mean in all of them. `sensorium2023` is neuralpredictors' NeuroNormalizer, which the organisers'
baselines and Dynamic-VFM use, `sensorium2022` the same for images. `dwiseneuro` leaves padding to 64 x 64 to its model.
`viv1t_2` is what the published weights of ViV1T were trained with: that program reads mean and standard deviation where
it means minimum and maximum of the video. Its responses are per frame even where its inputs are not. Own statistics are
of the training trials; ViV1T's look at 300 frames, to which it cuts all trials. Where a source brings no statistics,
the same ones are computed of the training trials.
"""

from dataclasses import dataclass

import numpy as np

from transfer.frame_statistics import STIMULI

EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Rule:
    """How each modality is changed: "" (not), "z", "scale", "min-max", or "std-mean", which is ViV1T's mistake.

    `provided`: whether the source's own statistics are used where there are any. `over`: "frame", "time" or "all" (one
    number, of stimuli; of signals as "time"). `eps` is added to standard deviations of z-scores.
    """

    response_space: str = "raw"
    stimulus: str = ""
    behavior: str = ""
    pupil: str = ""
    provided: bool = False
    over: str = "frame"
    eps: float = 0.0
    rectified: bool = False

    def change(self, part: str) -> str:
        """What is done to a modality."""
        return self.stimulus if part in STIMULI else {"behavior": self.behavior, "pupil_center": self.pupil}[part]


Z_SCORED = {"stimulus": "z", "behavior": "scale", "pupil": "z"}
MIN_MAX = {"stimulus": "min-max", "behavior": "min-max", "pupil": "min-max"}
NORMALISATIONS = {
    "none": Rule(),
    "dwiseneuro": Rule(rectified=True),
    "sensorium2023": Rule("per_frame_std", **Z_SCORED, provided=True),
    "viv1t_0": Rule(),
    "viv1t_1": Rule("per_frame_std", **Z_SCORED, eps=EPS),
    "viv1t_2": Rule("per_frame_std", **(MIN_MAX | {"stimulus": "std-mean"})),
    "viv1t_3": Rule("per_frame_std", **Z_SCORED, over="time", eps=EPS),
    "viv1t_4": Rule("per_frame_std", **MIN_MAX, over="time"),
    "viv1t_provided_1": Rule("per_frame_std", **Z_SCORED, provided=True, eps=EPS),
    "viv1t_provided_2": Rule("per_frame_std", **(MIN_MAX | {"stimulus": "std-mean"}), provided=True),
    "viv1t_closed_loop": Rule("per_neuron_std", **Z_SCORED, over="all", eps=EPS),
    "sensorium2022": Rule("per_neuron_std", **Z_SCORED, provided=True, over="all"),
    "v1t": Rule("per_neuron_std", **Z_SCORED, provided=True, over="all"),
}
