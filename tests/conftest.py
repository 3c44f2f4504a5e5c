"""What tests share: where the reference values and real data lie, if they are here."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values and real data beside the project; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "reference" / "values").is_dir():
        pytest.skip(f"reference values and real data are not here ({folder} is absent)")
    return folder
