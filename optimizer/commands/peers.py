"""Options that put OpenVINO and NNCF beside ONNX Runtime."""

from __future__ import annotations

from typing import Annotated

import typer

from ..calibration import Calibration
from ..errors import UsageError

PEERS = 'OpenVINO (pip install "onnxpress\\[peers]")'

OpenVino = Annotated[bool, typer.Option("--openvino", help="Each model in OpenVINO too.", rich_help_panel=PEERS)]
Nncf = Annotated[
    bool, typer.Option("--nncf", help="What NNCF makes of the first model, in OpenVINO.", rich_help_panel=PEERS)
]
NncfData = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        help="Data of --nncf, as optimize takes it; a model of the catalogue has its own.",
        rich_help_panel=PEERS,
    ),
]
NncfSamples = Annotated[
    int | None, typer.Option("--samples", min=1, help="Samples to take of it; 128.", rich_help_panel=PEERS)
]
NncfImages = Annotated[
    str | None,
    typer.Option("--images", help="How images become inputs: a name, or a TOML file.", rich_help_panel=PEERS),
]
NncfTokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="tokenizer.json for text.", rich_help_panel=PEERS)
]


def nncf_data(
    nncf: bool, calibration: str | None, samples: int | None, images: str | None, tokenizer: str | None
) -> Calibration | None:
    """What NNCF is to see, None where it is not asked for.

    Raises:
        UsageError: Data is given that nobody reads.
    """
    data = Calibration(calibration, samples=samples, images=images, tokenizer=tokenizer)
    if not nncf and data != Calibration():
        raise UsageError(
            "--calibration, --samples, --images and --tokenizer are read by --nncf alone (or bench --data)"
        )
    return data if nncf else None
