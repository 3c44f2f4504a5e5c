"""The integers by which submission files name the neurons of a recording.

What comes in: a recording of one mouse. What goes out: int64 (neurons,), in the order of its responses.
"""

import numpy as np

from neural_data.recording import Recording


def unit_ids(recording: Recording) -> np.ndarray:
    """The source's own ids, which are integers in published recordings.

    Where they are not, as in simulated ones, neurons are numbered from 0 in their order.
    """
    ids = recording.neurons["neuron_id"]
    if ids.str.fullmatch(r"\d{1,18}").all():
        return ids.to_numpy().astype(np.int64)
    return np.arange(len(ids))
