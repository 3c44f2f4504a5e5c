"""Eye tracker and treadmill of an experanto folder: pupil and running as a `Recording` holds them.

Comes in: the devices. Goes out: `Signals`, their columns side by side, sampled at times or averaged over windows, and
split into the pupil's centre and everything else. Either device may be absent.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_data.experanto_devices import Sequence
from neural_data.experanto_folder import ExperantoFolder

# The published recordings do not name their signals; this is the order that models trained on them rely on.
PUBLISHED = {
    ("eye_tracker", 4): ("pupil_dilation", "pupil_dilation_derivative", "pupil_x", "pupil_y"),
    ("treadmill", 1): ("running_speed",),
}
CENTER = ("pupil_x", "pupil_y")
DEVICES = ("eye_tracker", "treadmill")


@dataclass(frozen=True)
class Signals:
    """`names`: of the columns of all devices, one after the other."""

    devices: tuple[Sequence, ...]
    names: tuple[str, ...]

    def at(self, times_s: np.ndarray, interpolation: str) -> np.ndarray:
        """float32 (signals, times), NaN where a device has no value."""
        values = [device.at(times_s, interpolation)[0].T for device in self.devices]
        return np.concatenate([np.empty((0, len(times_s))), *values]).astype(np.float32)

    def windows(self, start_s: np.ndarray, stop_s: np.ndarray) -> np.ndarray:
        """float32 (windows, signals): averages, NaN where a device has no value."""
        values = [device.windows(start_s, stop_s) for device in self.devices]
        return np.concatenate([np.empty((len(start_s), 0)), *values], axis=1).astype(np.float32)

    def parts(self, values: np.ndarray) -> dict[str, Any]:
        """Values (trials, signals[, time]) as the parts of a recording that they belong to."""
        center = CENTER if set(CENTER) <= set(self.names) else ()
        others = tuple(name for name in self.names if name not in center)
        columns = {name: values[:, at] for at, name in enumerate(self.names)}
        found = {}
        if center:
            found["pupil_center"] = np.stack([columns[name] for name in center], axis=1)
        if others:
            found["behavior"] = np.stack([columns[name] for name in others], axis=1)
            found["behavior_names"] = others
        return found


def open_signals(source: ExperantoFolder, given: Mapping[str, Listed[str]]) -> Signals:
    """The signals of the devices that there are, named by `given`, the file, or the published order.

    Raises ValueError for a device that is no sequence, and for names that are too few, too many or doubled.
    """
    devices = {name: source.devices[name] for name in DEVICES if name in source.devices}
    unknown = sorted(set(given) - set(devices))
    if unknown:
        there = " or ".join(devices) or "none: there is no eye_tracker or treadmill"
        raise ValueError(f"{source.path}: signal_names: found {', '.join(unknown)}, expected {there}")
    names: list[str] = []
    for name, device in devices.items():
        if not isinstance(device, Sequence):
            raise ValueError(f"{source.path / name / 'meta.yml'}: modality: found another, expected sequence")
        names += _names(name, device, given.get(name))
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{source.path}: signal_names: found {', '.join(doubled)} twice, expected a name per signal")
    return Signals(tuple(devices.values()), tuple(names))


def _names(name: str, device: Sequence, given: Listed[str] | None) -> list[str]:
    signals = device.shape[1]
    if given is not None and len(given) != signals:
        raise ValueError(f"signal_names: found {len(given)} names for {name}, expected {signals}, one per signal")
    numbered = [f"{name}_{signal}" for signal in range(signals)]
    return list(given or device.signal_names or PUBLISHED.get((name, signals), numbered))
