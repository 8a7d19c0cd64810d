"""BentoML: worker processes with the model in each; `bentoml serve bentoml_app:Segment`."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import bentoml
from model import WORKERS, Model


@bentoml.service(workers=int(os.environ[WORKERS]), traffic={"timeout": 30})
class Segment:
    """A file comes as a form and reaches the method as a path; the answer leaves it as a path, too."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(route="/segment")
    def segment(self, image: Path) -> Path:
        with NamedTemporaryFile(suffix=".png", dir=bentoml.Context().temp_dir, delete=False) as file:
            file.write(self.model.segment(image.read_bytes()))
        return Path(file.name)
